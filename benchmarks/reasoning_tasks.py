"""Puzzles with one right answer, made by our own generators, and their split into train and test.

Every puzzle asks for many answers at once, the easy ones first along a path, so that each segment
of thought can extend what the one before has settled. How hard a puzzle is, is known from how it
was made. Nothing here learns.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Split = Literal["train", "test"]

NOT_SCORED = -1
TEST_ONE_IN = 8  # of all puzzles that could ever be made, this share is never trained on


@dataclass(frozen=True)
class Puzzles:
    """Hold puzzles as tokens [N, S], answers [N, S] and difficulty [N], all int64.

    An answer is NOT_SCORED where there is nothing to say. origin [N]: equal numbers mark puzzles
    that are one puzzle under a symmetry; the split keeps them together.
    """

    tokens: Ints
    answers: Ints
    difficulty: Ints
    origin: Ints

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Ints | Bools | slice) -> "Puzzles":
        """Take some rows."""
        return Puzzles(
            self.tokens[index], self.answers[index], self.difficulty[index], self.origin[index]
        )


@dataclass(frozen=True)
class Task:
    """Say what a task's puzzles look like and how they are made.

    grid: rows and columns where position means a place on a board, else None. difficulty_meaning
    names the unit of Puzzles.difficulty. bucket: difficulties are reported in steps of this width.
    """

    name: str
    length: int
    vocabulary: int
    classes: int
    grid: tuple[int, int] | None
    difficulty_meaning: str
    bucket: int
    make: Callable[[int, np.random.Generator], Puzzles]


def identity_of_rows(tokens: Ints) -> Ints:
    """Hash each row [N, S] to a number [N], the same on every machine."""
    rows = np.ascontiguousarray(tokens.astype(np.int16))
    digests = [hashlib.blake2b(row.tobytes(), digest_size=7).digest() for row in rows]
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.int64)


def is_held_out(origin: Ints) -> Bools:
    """Tell which origins belong to the test set: a pure function, so the two never overlap."""
    return np.asarray(origin % TEST_ONE_IN == 0, dtype=np.bool_)


def draw(task: Task, split: Split, count: int, seed: int) -> Puzzles:
    """Make `count` puzzles of one side of the split, the same for the same seed."""
    generator = np.random.default_rng([seed, 0 if split == "train" else 1])
    parts: list[Puzzles] = []
    have = 0
    while have < count:
        made = task.make(max(count - have, 64), generator)
        chosen = made.rows(is_held_out(made.origin) == (split == "test"))
        parts.append(chosen)
        have += len(chosen)
    return Puzzles(
        *(
            np.concatenate([getattr(part, name) for part in parts])[:count]
            for name in ("tokens", "answers", "difficulty", "origin")
        )
    )


# --- prefix products in a permutation group ---------------------------------------------------


def group_table(size: int) -> Ints:
    """Return the table [G, G] of the symmetric group on `size` objects: row first, then column."""
    elements = list(permutations(range(size)))
    place = {element: index for index, element in enumerate(elements)}
    table = [
        [place[tuple(second[image] for image in first)] for second in elements]
        for first in elements
    ]
    return np.array(table, dtype=np.int64)


def chain_task(length: int, objects: int = 3, shortest: int = 4) -> Task:
    """Ask for every prefix product of a chain of permutations of `objects` things.

    The chain's length is its difficulty: uniform in shortest..length, the rest is padding.
    """
    table = group_table(objects)
    order = len(table)

    def make(count: int, generator: np.random.Generator) -> Puzzles:
        tokens = generator.integers(0, order, (count, length))
        lengths = generator.integers(shortest, length + 1, count)
        answers = np.empty_like(tokens)
        answers[:, 0] = tokens[:, 0]
        for place in range(1, length):
            answers[:, place] = table[answers[:, place - 1], tokens[:, place]]
        padding = np.arange(length) >= lengths[:, None]
        tokens[padding], answers[padding] = order, NOT_SCORED
        return Puzzles(tokens, answers, lengths, identity_of_rows(tokens))

    return Task(
        name=f"permutation_chain_s{objects}_{length}",
        length=length,
        vocabulary=order + 1,
        classes=order,
        grid=None,
        difficulty_meaning="permutations in the chain",
        bucket=4,
        make=make,
    )


# --- flood fill ---------------------------------------------------------------------------------

WALL, OPEN, START = 0, 1, 2


def distances_from_start(boards: Ints) -> Ints:
    """Return the steps from the start to every cell, [N, R, C]; -1 where no path leads."""
    passable = boards != WALL
    distance = np.where(boards == START, 0, -1)
    step = 0
    while True:
        frontier = distance == step
        beside = np.zeros_like(frontier)
        beside[:, 1:] |= frontier[:, :-1]
        beside[:, :-1] |= frontier[:, 1:]
        beside[:, :, 1:] |= frontier[:, :, :-1]
        beside[:, :, :-1] |= frontier[:, :, 1:]
        fresh = beside & passable & (distance < 0)
        if not fresh.any():
            return distance.astype(np.int64)
        step += 1
        distance[fresh] = step


def flood_fill_task(side: int, longest: int) -> Task:
    """Ask which open cells of a walled board a path from the start reaches.

    Difficulty is the distance of the farthest reached cell, about uniform in 1..longest: plain
    random boards are mostly easy, and the answer "all of them" would be right too often.
    """

    def make(count: int, generator: np.random.Generator) -> Puzzles:
        candidates = 12 * count
        density = generator.uniform(0.3, 0.5, (candidates, 1, 1))
        walls = generator.random((candidates, side, side)) < density
        flat = np.where(walls, WALL, OPEN).reshape(candidates, -1).astype(np.int64)
        starts = generator.integers(0, side * side, candidates)
        flat[np.arange(candidates), starts] = START
        boards = flat.reshape(candidates, side, side)
        distance = distances_from_start(boards)
        farthest = distance.reshape(candidates, -1).max(axis=1)
        unreached = ((boards == OPEN) & (distance < 0)).any(axis=(1, 2))
        fits = np.flatnonzero(unreached & (farthest >= 1) & (farthest <= longest))
        common = np.bincount(farthest[fits], minlength=longest + 1)
        # The rarest depths are kept whole; the weight of the others falls with their number.
        weight = 1.0 / np.maximum(common[farthest[fits]], candidates / 200)
        chosen = generator.choice(
            fits, min(count, len(fits)), replace=False, p=weight / weight.sum()
        )
        tokens = boards[chosen].reshape(len(chosen), -1)
        reached = distance[chosen].reshape(len(chosen), -1) >= 0
        answers = np.where(tokens == OPEN, reached.astype(np.int64), NOT_SCORED)
        return Puzzles(tokens, answers, farthest[chosen], identity_of_rows(tokens))

    return Task(
        name=f"flood_fill_{side}x{side}",
        length=side * side,
        vocabulary=3,
        classes=2,
        grid=(side, side),
        difficulty_meaning="steps to the farthest reached cell",
        bucket=4,
        make=make,
    )


# --- Sudoku -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SudokuShape:
    """Say how large a Sudoku is: boxes of box_rows x box_columns, as many symbols as a box has."""

    box_rows: int
    box_columns: int

    @property
    def side(self) -> int:
        """Return the number of symbols, rows and columns."""
        return self.box_rows * self.box_columns

    def peers(self) -> list[list[int]]:
        """Return, for every cell, the other cells of its row, column and box."""
        side, units = self.side, self.units()
        return [
            sorted({cell for unit in units if own in unit for cell in unit} - {own})
            for own in range(side * side)
        ]

    def units(self) -> list[list[int]]:
        """Return rows, columns and boxes as lists of cells."""
        side, tall, wide = self.side, self.box_rows, self.box_columns
        rows = [[r * side + c for c in range(side)] for r in range(side)]
        columns = [[r * side + c for r in range(side)] for c in range(side)]
        boxes = [
            [(top + r) * side + left + c for r in range(tall) for c in range(wide)]
            for top in range(0, side, tall)
            for left in range(0, side, wide)
        ]
        return rows + columns + boxes


class SudokuMaker:
    """Make Sudokus with exactly one solution, and say how hard each is."""

    def __init__(self, shape: SudokuShape) -> None:
        self._side = shape.side
        self._peers = shape.peers()
        self._units = shape.units()
        self._all = (1 << shape.side) - 1

    def solutions(self, clues: list[int], limit: int, order: list[int]) -> list[list[int]]:
        """Return up to `limit` solutions of a board (0 = blank), trying symbols in `order`."""
        candidates = [self._all] * len(clues)
        board = [0] * len(clues)
        for cell, symbol in enumerate(clues):
            if symbol and not self._place(board, candidates, cell, symbol):
                return []
        found: list[list[int]] = []
        self._search(board, candidates, limit, order, found)
        return found

    def full_board(self, generator: np.random.Generator) -> list[int]:
        """Draw a filled board."""
        order = [int(symbol) + 1 for symbol in generator.permutation(self._side)]
        clues = [0] * self._side**2
        # Random first row and a few random cells below: enough to make the search's end random.
        clues[: self._side] = [int(symbol) + 1 for symbol in generator.permutation(self._side)]
        while True:
            seeded = list(clues)
            for row in range(1, self._side):
                cell = row * self._side + int(generator.integers(self._side))
                seeded[cell] = int(generator.integers(self._side)) + 1
            found = self.solutions(seeded, 1, order)
            if found:
                return found[0]

    def puzzle(
        self, solution: list[int], fewest_clues: int, generator: np.random.Generator
    ) -> list[int]:
        """Blank cells in random order as long as the solution stays the only one."""
        clues = list(solution)
        order = list(range(1, self._side + 1))
        left = len(clues)
        for cell in generator.permutation(len(clues)).tolist():
            if left <= fewest_clues:
                break
            symbol, clues[cell] = clues[cell], 0
            if len(self.solutions(clues, 2, order)) > 1:
                clues[cell] = symbol
            else:
                left -= 1
        return clues

    def rounds(self, clues: list[int], solution: list[int]) -> int:
        """Count rounds of deduction: all naked and hidden singles at once are one round.

        A round that finds none is a guess: the blank with the fewest candidates is given away.
        """
        board = list(clues)
        count = 0
        while 0 in board:
            count += 1
            candidates = self._candidates(board)
            found = {
                cell: mask.bit_length()
                for cell, mask in candidates.items()
                if mask.bit_count() == 1
            }
            for unit in self._units:
                for symbol in range(1, self._side + 1):
                    places = [cell for cell in unit if candidates.get(cell, 0) >> (symbol - 1) & 1]
                    if len(places) == 1:
                        found[places[0]] = symbol
            if not found:
                cell = min(candidates, key=lambda place: candidates[place].bit_count())
                found = {cell: solution[cell]}
            for cell, symbol in found.items():
                board[cell] = symbol
        return count

    def _candidates(self, board: list[int]) -> dict[int, int]:
        result: dict[int, int] = {}
        for cell, symbol in enumerate(board):
            if symbol == 0:
                mask = self._all
                for peer in self._peers[cell]:
                    if board[peer]:
                        mask &= ~(1 << (board[peer] - 1))
                result[cell] = mask
        return result

    def _place(self, board: list[int], candidates: list[int], cell: int, symbol: int) -> bool:
        bit = 1 << (symbol - 1)
        if not candidates[cell] & bit:
            return False
        board[cell] = symbol
        for peer in self._peers[cell]:
            candidates[peer] &= ~bit
            if board[peer] == 0 and candidates[peer] == 0:
                return False
        return True

    def _search(
        self,
        board: list[int],
        candidates: list[int],
        limit: int,
        order: list[int],
        found: list[list[int]],
    ) -> None:
        cell, fewest = -1, self._side + 1
        for place, symbol in enumerate(board):
            if symbol == 0:
                number = candidates[place].bit_count()
                if number < fewest:
                    cell, fewest = place, number
                    if number <= 1:
                        break
        if cell < 0:
            found.append(list(board))
            return
        for symbol in order:
            if candidates[cell] >> (symbol - 1) & 1:
                next_board, next_candidates = list(board), list(candidates)
                if self._place(next_board, next_candidates, cell, symbol):
                    self._search(next_board, next_candidates, limit, order, found)
                    if len(found) >= limit:
                        return


def scrambled(
    board: Ints, answer: Ints, shape: SudokuShape, generator: np.random.Generator
) -> tuple[Ints, Ints]:
    """Apply one random symmetry to a puzzle [S] and its solution [S]: symbols, rows, columns."""
    side = shape.side

    def shuffled(group: int) -> Ints:
        groups = generator.permutation(side // group)
        return np.concatenate([g * group + generator.permutation(group) for g in groups])

    rows, columns = shuffled(shape.box_rows), shuffled(shape.box_columns)
    cells = (rows[:, None] * side + columns[None, :]).ravel()
    symbols = np.concatenate(([0], generator.permutation(side) + 1))
    return symbols[board[cells]], symbols[answer[cells]]


def sudoku_task(shape: SudokuShape, fewest_clues: int, copies: int) -> Task:
    """Ask for the blanks of a Sudoku with one solution.

    Each base puzzle is dug once and then used under `copies` random symmetries; all of them share
    its origin, so they land on the same side of the split.
    """
    side = shape.side
    maker = SudokuMaker(shape)

    def make(count: int, generator: np.random.Generator) -> Puzzles:
        boards, answers, difficulty, origins = [], [], [], []
        for _ in range(-(-count // copies)):
            solution = maker.full_board(generator)
            clues = maker.puzzle(solution, fewest_clues, generator)
            rounds = maker.rounds(clues, solution)
            board, answer = np.array(clues, dtype=np.int64), np.array(solution, dtype=np.int64)
            origin = int(identity_of_rows(board[None])[0])
            for _ in range(copies):
                turned, turned_answer = scrambled(board, answer, shape, generator)
                boards.append(turned)
                answers.append(np.where(turned == 0, turned_answer - 1, NOT_SCORED))
                difficulty.append(rounds)
                origins.append(origin)
        return Puzzles(
            np.array(boards, dtype=np.int64),
            np.array(answers, dtype=np.int64),
            np.array(difficulty, dtype=np.int64),
            np.array(origins, dtype=np.int64),
        )

    return Task(
        name=f"sudoku_{side}x{side}",
        length=side * side,
        vocabulary=side + 1,
        classes=side,
        grid=(side, side),
        difficulty_meaning="rounds of naked and hidden singles",
        bucket=2,
        make=make,
    )
