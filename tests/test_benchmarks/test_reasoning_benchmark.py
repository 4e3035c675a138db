"""The proof of reasoning: right puzzles, an honest split, equal rivals, and a report that holds."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import reasoning, reasoning_training
from benchmarks.reasoning import (
    COMPARISONS,
    FULL,
    Comparison,
    Contest,
    by_bucket,
    compare,
    hrm_findings,
    main,
    mean_of,
    merged,
    rises_with_segments,
    rounded,
    scaled,
    summary,
    with_shuffled_answers,
)
from benchmarks.reasoning_models import (
    HRMSize,
    TokenHRM,
    one_shot_of_equal_size,
    parameter_count,
)
from benchmarks.reasoning_tasks import (
    NOT_SCORED,
    OPEN,
    START,
    WALL,
    SudokuMaker,
    SudokuShape,
    Task,
    chain_task,
    distances_from_start,
    draw,
    flood_fill_task,
    group_table,
    sudoku_task,
)
from benchmarks.reasoning_training import (
    Examination,
    HRMTrainer,
    OneShotTrainer,
    TrainingSettings,
    answer_loss,
    brier_skill,
    examine,
    expected_calibration_error,
    rank_correlation,
    right_cells,
    train,
    training_flops,
)

TINY = HRMSize(
    width=16,
    layers=1,
    feed_forward=32,
    heads=2,
    low_width=16,
    low_layers=1,
    low_feed_forward=32,
    n_cycles=1,
    registers=2,
)
SETTINGS = TrainingSettings(seconds=1e6, steps=6, batch=8, learning_rate=3e-3, m_max=3)
SUDOKU = SudokuShape(2, 2)
TASKS: list[Task] = [chain_task(6), flood_fill_task(4, 8), sudoku_task(SUDOKU, 4, 10)]


def a_trainer(task: Task | None = None, **changes: Any) -> HRMTrainer:
    task = task or chain_task(6)
    torch.manual_seed(0)
    chosen = replace(SETTINGS, **changes)
    return HRMTrainer(TokenHRM(task, TINY), chosen, draw(task, "train", 64, 0), seed=0)


def no_score(_model: torch.nn.Module) -> float:
    return 0.0


# --- puzzles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_train_and_test_share_no_puzzle(task: Task) -> None:
    train_set, test_set = draw(task, "train", 400, 0), draw(task, "test", 100, 0)

    assert not set(train_set.origin.tolist()) & set(test_set.origin.tolist())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_same_seed_draws_the_same_puzzles(task: Task) -> None:
    one, other, third = (draw(task, "train", 50, seed) for seed in (3, 3, 4))

    assert np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(one.answers, other.answers)
    assert not np.array_equal(one.tokens, third.tokens)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_tokens_and_answers_stay_inside_their_vocabularies(task: Task) -> None:
    puzzles = draw(task, "train", 200, 0)

    assert puzzles.tokens.shape == puzzles.answers.shape == (200, task.length)
    assert puzzles.tokens.min() >= 0
    assert puzzles.tokens.max() < task.vocabulary
    assert puzzles.answers.min() >= NOT_SCORED
    assert puzzles.answers.max() < task.classes
    assert (puzzles.answers != NOT_SCORED).any(axis=1).all()


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_the_table_of_permutations_is_a_group_that_does_not_commute(a: int, b: int, c: int) -> None:
    table = group_table(3)

    assert table[table[a, b], c] == table[a, table[b, c]]
    assert table[a, 0] == table[0, a] == a
    assert (table != table.T).any()


def test_a_chain_asks_for_every_prefix_product() -> None:
    table = group_table(3)
    puzzles = draw(chain_task(6), "train", 50, 0)

    for tokens, answers, length in zip(
        puzzles.tokens, puzzles.answers, puzzles.difficulty, strict=True
    ):
        product = 0
        for place in range(length):
            product = int(table[product, tokens[place]])
            assert answers[place] == product
        assert (answers[length:] == NOT_SCORED).all()


def test_distances_follow_open_cells_only() -> None:
    board = np.array(
        [
            [START, WALL, OPEN],
            [OPEN, WALL, OPEN],
            [OPEN, OPEN, WALL],
        ]
    )[None]

    distance = distances_from_start(board)

    assert distance[0].tolist() == [[0, -1, -1], [1, -1, -1], [2, 3, -1]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_a_flood_marks_exactly_the_cells_beside_other_marked_ones(seed: int) -> None:
    puzzles = flood_fill_task(4, 8).make(5, np.random.default_rng(seed))

    for tokens, answers in zip(puzzles.tokens, puzzles.answers, strict=True):
        board, wet = (
            tokens.reshape(4, 4),
            (answers.reshape(4, 4) == 1) | (tokens.reshape(4, 4) == START),
        )
        for row, column in np.argwhere(wet):
            for r, c in (
                (row + 1, column),
                (row, column + 1),
                (row - 1, column),
                (row, column - 1),
            ):
                if 0 <= r < 4 and 0 <= c < 4 and board[r, c] != WALL:
                    assert wet[r, c]
        assert (answers == 0).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_a_sudoku_has_one_solution_and_it_is_the_answer(seed: int) -> None:
    puzzles = sudoku_task(SUDOKU, 4, 3).make(6, np.random.default_rng(seed))
    maker = SudokuMaker(SUDOKU)

    for tokens, answers in zip(puzzles.tokens, puzzles.answers, strict=True):
        found = maker.solutions(tokens.tolist(), 2, [1, 2, 3, 4])
        assert len(found) == 1
        filled = np.where(tokens == 0, answers + 1, tokens)
        assert filled.tolist() == found[0]
        assert (answers[tokens != 0] == NOT_SCORED).all()


def test_contradictory_clues_have_no_solution() -> None:
    clues = [1, 1] + [0] * 14

    assert SudokuMaker(SUDOKU).solutions(clues, 1, [1, 2, 3, 4]) == []


def test_rounds_count_deductions_that_build_on_each_other() -> None:
    maker = SudokuMaker(SUDOKU)
    solution = maker.full_board(np.random.default_rng(0))
    one_blank = [0, *solution[1:]]
    empty = [0] * 16

    assert maker.rounds(solution, solution) == 0
    assert maker.rounds(one_blank, solution) == 1
    assert maker.rounds(empty, solution) > 3


def test_a_9x9_sudoku_has_nine_symbols_and_one_solution() -> None:
    shape = SudokuShape(3, 3)
    puzzles = sudoku_task(shape, 30, 2).make(2, np.random.default_rng(1))

    found = SudokuMaker(shape).solutions(puzzles.tokens[1].tolist(), 2, list(range(1, 10)))

    assert len(found) == 1
    assert sorted(found[0][:9]) == list(range(1, 10))


# --- rivals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [c().task for c in COMPARISONS.values()], ids=lambda t: t.name)
@pytest.mark.parametrize("layers", [2, 4, 8])
def test_the_rivals_have_equally_many_parameters(task: Task, layers: int) -> None:
    size = reasoning.SMALL
    wanted = parameter_count(TokenHRM(task, size))

    rival = one_shot_of_equal_size(task, wanted, layers, size.heads, size.registers)

    assert parameter_count(rival) == pytest.approx(wanted, rel=0.01)


def test_too_many_layers_for_the_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="no transformer of 64 layers has 5000 parameters"):
        one_shot_of_equal_size(chain_task(6), 5000, 64, 4, 2)


def test_cells_that_are_not_scored_change_neither_loss_nor_score() -> None:
    answers = torch.tensor([[1, NOT_SCORED]])
    logits = torch.tensor([[[0.0, 9.0], [9.0, 0.0]]])
    other = torch.tensor([[[0.0, 9.0], [0.0, 9.0]]])

    assert torch.equal(answer_loss(logits, answers), answer_loss(other, answers))
    share, whole = right_cells(logits, answers)
    assert share.tolist() == [1.0]
    assert whole.tolist() == [True]


def test_one_wrong_cell_spoils_the_whole_answer() -> None:
    share, whole = right_cells(torch.eye(2)[None], torch.tensor([[0, 0]]))

    assert share.tolist() == [0.5]
    assert whole.tolist() == [False]


def test_every_part_of_the_hrm_learns() -> None:
    trainer = a_trainer(learning_rate=1e-2)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}

    for _ in range(4):
        trainer.step()

    still = [n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])]
    assert still == []


def test_a_slot_thinks_on_until_it_halts_and_then_gets_a_new_puzzle() -> None:
    trainer = a_trainer(full_depth_share=1.0)
    first = trainer.extra_state()["tokens"].clone()

    trainer.step()
    trainer.step()
    kept = trainer.extra_state()["tokens"].clone()
    trainer.step()

    assert torch.equal(kept, first)
    assert not torch.equal(trainer.extra_state()["tokens"], first)
    assert trainer.extra_state()["segment"].tolist() == [0] * 8


def test_the_curriculum_begins_with_the_easiest_puzzles() -> None:
    task = chain_task(16)
    torch.manual_seed(0)
    puzzles = draw(task, "train", 400, 0)
    trainer = HRMTrainer(TokenHRM(task, TINY), SETTINGS, puzzles, seed=0)

    lengths = (trainer.extra_state()["tokens"] != task.vocabulary - 1).sum(dim=1)

    assert int(lengths.max()) <= int(np.quantile(puzzles.difficulty, 0.1))


def test_a_loss_that_is_no_number_stops_training() -> None:
    trainer = a_trainer()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        trainer.step()


@pytest.mark.parametrize("rival", ["hrm", "one-shot"])
def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(
    tmp_path: Path, rival: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasoning_training, "SAVE_EVERY_SECONDS", 0.0)

    def begin() -> HRMTrainer | OneShotTrainer:
        if rival == "hrm":
            return a_trainer(steps=8)
        task = chain_task(6)
        torch.manual_seed(0)
        model = one_shot_of_equal_size(task, 6000, 2, 2, 2)
        chosen = replace(SETTINGS, steps=8)
        return OneShotTrainer(model, chosen, draw(task, "train", 64, 0), seed=0)

    looks: list[int] = []

    def pull_the_plug(_model: torch.nn.Module) -> float:
        looks.append(1)
        if len(looks) == 5:
            raise KeyboardInterrupt
        return 0.0

    unbroken = begin()
    train(unbroken, score=no_score)
    with pytest.raises(KeyboardInterrupt):
        train(begin(), score=pull_the_plug, checkpoint=tmp_path / "a.pt")
    resumed = begin()
    progress = train(resumed, score=no_score, checkpoint=tmp_path / "a.pt")

    assert progress.steps == 8
    for one, other in ((unbroken.model, resumed.model), (unbroken.averaged, resumed.averaged)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_operations_are_counted_per_step() -> None:
    small, large = a_trainer(batch=8), a_trainer(batch=16)

    assert training_flops(large) == pytest.approx(2 * training_flops(small), rel=0.05)


def test_counting_operations_on_a_copy_leaves_training_alone() -> None:
    trainer = a_trainer()
    before = copy.deepcopy(trainer.model.state_dict())

    training_flops(copy.deepcopy(trainer))

    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())


@pytest.mark.slow
def test_a_tiny_hrm_learns_short_chains_and_gains_by_its_segments() -> None:
    task = chain_task(5, objects=2, shortest=2)
    torch.manual_seed(0)
    size = replace(TINY, width=32, low_width=32, feed_forward=64, low_feed_forward=64)
    chosen = replace(SETTINGS, seconds=1e6, steps=600, batch=32, m_max=4)
    trainer = HRMTrainer(TokenHRM(task, size), chosen, draw(task, "train", 2_000, 0), seed=0)

    train(trainer, score=no_score)

    model = trainer.averaged
    assert isinstance(model, TokenHRM)
    seen = examine(model, draw(task, "test", 20, 0), 4)
    assert seen.whole[-1].mean() > 0.6
    assert seen.whole[-1].mean() >= seen.whole[0].mean()


# --- figures ------------------------------------------------------------------------------------


def an_examination(whole: list[list[bool]], halt: list[list[float]]) -> Examination:
    marks = np.array(whole)
    return Examination(
        cells=marks.astype(np.float64),
        whole=marks,
        halt=np.array(halt),
        onward=np.full(marks.shape, 0.5),
    )


def test_a_puzzle_halts_where_halt_first_exceeds_onward_and_else_at_the_end() -> None:
    seen = an_examination(
        [[False, False, False], [True, False, False], [True, True, False]],
        [[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.1, 0.9, 0.1]],
    )

    assert seen.depths(3).tolist() == [2, 3, 3]


def test_findings_keep_depth_and_rightness_of_each_difficulty_apart() -> None:
    task = chain_task(8)
    puzzles = draw(task, "test", 2, 0)
    puzzles = replace(puzzles, difficulty=np.array([4, 8]))
    seen = an_examination(
        [[True, False], [True, True], [True, True], [True, True]],
        [[0.9, 0.1], [0.9, 0.9], [0.9, 0.9], [0.9, 0.9]],
    )

    found = hrm_findings(seen, puzzles, task, m_max=2)

    assert found["halting_depth_by_difficulty"] == {"4": 1.0, "8": 2.0}
    assert found["accuracy_by_segments"] == [0.5, 1.0, 1.0, 1.0]
    assert found["accuracy_at_halt"] == 1.0
    assert found["halting_depth_correlation"] == pytest.approx(1.0)


def test_chances_equal_to_frequencies_are_calibrated() -> None:
    chances = np.repeat([0.25, 0.75], 400)
    happened = np.tile([True, False, False, False], 100)
    happened = np.concatenate([happened, ~happened])

    assert expected_calibration_error(chances, happened) == pytest.approx(0.0)
    assert expected_calibration_error(1.0 - chances, happened) == pytest.approx(0.5)


def test_brier_skill_is_one_for_certainty_zero_for_the_base_rate_none_without_variation() -> None:
    happened = np.array([True, False, True, False])

    assert brier_skill(happened.astype(np.float64), happened) == 1.0
    assert brier_skill(np.full(4, 0.5), happened) == 0.0
    assert brier_skill(np.full(4, 0.5), np.ones(4, dtype=np.bool_)) is None


def test_rank_correlation_ignores_the_scale_and_shares_ranks_between_ties() -> None:
    one = np.array([1, 2, 2, 9])

    assert rank_correlation(one, one**3) == pytest.approx(1.0)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert rank_correlation(one, np.ones(4, dtype=np.int64)) is None


def test_means_go_through_lists_and_dictionaries_and_give_way_to_none() -> None:
    one = {"a": 1.0, "b": [0.0, 2.0], "c": None, "d": "same", "e": 1}
    other = {"a": 2.0, "b": [1.0, 4.0], "c": 3.0, "d": "same", "f": 1}

    assert mean_of([one, other]) == {"a": 1.5, "b": [0.5, 3.0], "c": None, "d": "same"}


@pytest.mark.parametrize(
    ("curve", "rises"),
    [
        ([0.1, 0.5, 0.9], True),
        ([0.1, 0.5, 0.495], True),
        ([0.1, 0.9, 0.5], False),
        ([0.9, 0.9, 0.9], False),
        ([0.9, 0.1, 0.1, 0.99], False),
    ],
)
def test_rising_means_a_clear_gain_and_no_fall_beyond_noise(
    curve: list[float], rises: bool
) -> None:
    assert rises_with_segments(curve, 3) is rises


def test_shuffled_answers_score_a_cell_only_where_both_puzzles_do() -> None:
    puzzles = draw(chain_task(6), "train", 100, 0)

    shuffled = with_shuffled_answers(puzzles, 0)

    assert np.array_equal(shuffled.tokens, puzzles.tokens)
    assert not np.array_equal(shuffled.answers, puzzles.answers)
    assert (shuffled.answers[puzzles.answers == NOT_SCORED] == NOT_SCORED).all()


def test_buckets_average_what_falls_into_them() -> None:
    averages = by_bucket(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 4]))

    assert averages == {"0": 2.0, "4": 5.0}


def test_a_result_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="diverged"):
        rounded({"a": [1.0, float("nan")]})


# --- the command --------------------------------------------------------------------------------


def a_task_result(difference: float) -> dict[str, Any]:
    return {
        "hrm_accuracy": 0.5 + difference,
        "oneshot_accuracy": 0.5,
        "difference": difference,
        "accuracy_rises_with_segments": True,
        "halting_depth_rises_with_difficulty": difference > 0.1,
    }


def test_the_summary_speaks_of_the_task_with_the_largest_difference() -> None:
    tasks = {"small": a_task_result(0.05), "large": a_task_result(0.3)}

    found = summary(tasks)

    assert found["best_task"] == "large"
    assert found["best_difference"] == 0.3
    assert found["halting_depth_rises_with_difficulty"] is True


def test_a_new_task_result_leaves_the_others_with_their_own_origin() -> None:
    old = merged(None, {"a": a_task_result(0.3)}, {"date": "one"})

    both = merged(old, {"b": a_task_result(0.1)}, {"date": "two"})

    assert both["date"] == "two"
    assert both["tasks"]["a"]["date"] == "one"
    assert both["tasks"]["b"]["date"] == "two"
    assert both["best_task"] == "a"


def test_minutes_scale_every_training_alike() -> None:
    comparison = COMPARISONS["permutation_chain"]()

    shorter = scaled(comparison, 0.5)

    assert shorter.total_seconds(1) == pytest.approx(comparison.total_seconds(1) / 2)
    assert comparison.total_seconds(2) - comparison.total_seconds(1) == pytest.approx(
        2 * comparison.settings.seconds
    )


def test_a_checkpoint_is_found_by_what_its_training_depends_on() -> None:
    one, other = (COMPARISONS["permutation_chain"]() for _ in range(2))

    assert reasoning.key_of(one, 0) == reasoning.key_of(other, 0)
    assert reasoning.key_of(one, 0) == reasoning.key_of(replace(one, depths=(2,)), 0)
    assert reasoning.key_of(one, 0) != reasoning.key_of(one, 1)
    assert reasoning.key_of(one, 0) != reasoning.key_of(scaled(one, 0.5), 0)


def test_a_comparison_reports_both_rivals_and_repeats_itself_from_its_checkpoints(
    tmp_path: Path,
) -> None:
    comparison = Comparison(chain_task(6), TINY, SETTINGS, 64, 20, depths=(1, 2))

    found = compare(comparison, [0, 1], tmp_path, lambda _: None)
    again = compare(comparison, [0, 1], tmp_path, lambda _: None)

    assert found == again
    assert found["test_puzzles_seen_in_training"] == 0
    assert len(found["accuracy_by_segments"]) == 6
    assert found["seeds"] == [0, 1]
    assert found["difference"] == found["hrm_accuracy"] - found["oneshot_accuracy"]
    assert found["training_steps"]["hrm"] == 6
    assert found["parameters"]["oneshot"] == pytest.approx(found["parameters"]["hrm"], rel=0.01)


def test_run_stores_what_report_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Comparison(chain_task(6), TINY, SETTINGS, 64, 20, depths=(1,))
    monkeypatch.setitem(COMPARISONS, "permutation_chain", lambda: tiny)
    places = ["--work", str(tmp_path), "--result", str(tmp_path / "result.json")]

    ran = main(["--run", "--task", "permutation_chain", "--json", *places])
    printed = json.loads(capsys.readouterr().out)
    reported = main(["--report", "--json", *places])

    assert ran == reported == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert set(printed) >= {"date", "commit", "command", "machine", "tasks", "best_difference"}
    assert main(["--report", *places]) == 0
    assert "permutation_chain: HRM" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_and_a_finished_one_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Comparison(chain_task(6), TINY, SETTINGS, 64, 20, depths=(1,))
    monkeypatch.setitem(COMPARISONS, "permutation_chain", lambda: tiny)
    folder = tmp_path / reasoning.key_of(tiny, 0)
    Contest(tiny, 0, tmp_path, lambda _: None).train_hrm()
    kept = [path.name for path in folder.iterdir()]
    places = ["--work", str(tmp_path), "--result", str(tmp_path / "result.json")]

    status = main(["--run", "--task", "permutation_chain", *places])

    assert status == 0
    assert kept == ["hrm.pt"]
    assert not folder.exists()


def test_the_smoke_test_fails_when_nothing_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = replace(SETTINGS, learning_rate=1e-9)
    tiny = Comparison(chain_task(16, shortest=12), TINY, hopeless, 64, 20, depths=(1,))
    monkeypatch.setitem(reasoning.QUICK, "permutation_chain", lambda: tiny)

    status = main(["--run", "--quick", "--result", str(tmp_path / "result.json")])

    assert status == 1
    assert "it has learned nothing" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()


def test_a_missing_result_is_an_error_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--report", "--json", "--result", str(tmp_path / "none.json")])

    assert status == 1
    assert "make it with --run" in capsys.readouterr().err


def test_9x9_sudoku_is_refused_without_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", "--task", "sudoku9"]) == 1
    assert "needs --preset full" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_the_full_preset_is_refused_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", "--task", "sudoku9", "--preset", "full"]) == 1
    assert "needs a GPU" in capsys.readouterr().err


def test_the_full_9x9_sudoku_has_the_size_of_the_paper() -> None:
    comparison = FULL["sudoku9"]()

    with torch.device("meta"):
        model = TokenHRM.__new__(TokenHRM)
        TokenHRM.__init__(model, comparison.task, comparison.size)

    assert parameter_count(model) == pytest.approx(27e6, rel=0.05)


def test_the_stored_result_is_whole_and_agrees_with_itself() -> None:
    result = reasoning.load_result(reasoning.RESULT)

    assert {name: result[name] for name in summary(result["tasks"])} == summary(result["tasks"])
    for task in result["tasks"].values():
        segments = task["segments_in_training"]
        assert task["hrm_accuracy"] == task["accuracy_by_segments"][segments - 1]
        assert task["difference"] == pytest.approx(
            task["hrm_accuracy"] - task["oneshot_accuracy"], abs=2e-5
        )
        assert task["test_puzzles_seen_in_training"] == 0
        assert task["parameters"]["oneshot"] == pytest.approx(task["parameters"]["hrm"], rel=0.01)
        assert task["training_seconds"]["oneshot"] == pytest.approx(
            task["training_seconds"]["hrm"], rel=0.02
        )
