"""How many spans wait and go at once: the profile, the standard variables, the container's memory; and what is lost."""

from __future__ import annotations

import pytest

from meshmw._telemetry.batching import Batching, batching_of
from meshmw._telemetry.provider import build_provider
from meshmw.errors import SettingsError
from meshmw.settings import Settings


def batching(headroom=None, **settings):
    return batching_of(Settings(**settings), lambda: headroom)


class TestBatching:
    @pytest.mark.parametrize(
        ("profile", "expected"), [("moderate", Batching(2048, 512, 5000)), ("high", Batching(8192, 2048, 1000))]
    )
    def test_a_profile_is_three_numbers(self, profile, expected):
        assert batching(batching=profile) == expected

    def test_the_standard_variables_win_over_a_profile(self, monkeypatch):
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "9000")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        assert batching(batching="high") == Batching(9000, 100, 200)
        assert batching(batching="moderate/150").queue == 150

    @pytest.mark.parametrize("value", ["0", "-5", "many", "2147483648", "9" * 5_000])
    def test_a_number_that_cannot_be_is_ignored_and_said(self, value, monkeypatch, caplog):
        for name in ("MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "SCHEDULE_DELAY"):
            monkeypatch.setenv(f"OTEL_BSP_{name}", value)
        assert batching() == Batching(2048, 512, 5000)
        assert sorted(line.split()[0].removeprefix("OTEL_BSP_") for line in caplog.messages) == [
            "MAX_EXPORT_BATCH_SIZE",
            "MAX_QUEUE_SIZE",
            "SCHEDULE_DELAY",
        ]

    @pytest.mark.parametrize(
        ("megabytes", "profile", "expected"),
        [(200, "moderate", 4096), (100, "high", 2048), (0, "moderate", 512), (100_000, "high", 65_536)],
    )
    def test_the_memory_that_is_left_bounds_the_queue(self, megabytes, profile, expected):
        assert batching(megabytes * 1_000_000, batching=f"{profile}/auto").queue == expected

    def test_without_a_limit_auto_is_the_profiles_and_never_less_than_one_export(self, monkeypatch):
        assert batching(None, batching="moderate/auto").queue == 2048
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3000")
        assert batching(None, batching="moderate/auto").queue == 3000

    def test_a_queue_below_one_export_names_both_and_the_remedy(self):
        with pytest.raises(SettingsError) as caught:
            batching(batching="high/100")
        assert caught.value.faults == (
            (
                "a queue of 100 spans (batching=high/100) is smaller than one export of 2048: "
                "set MESHMW_BATCHING to high/2048 or more, or OTEL_BSP_MAX_EXPORT_BATCH_SIZE to 100 or less"
            ),
        )

    def test_a_short_queue_of_the_standard_variable_shortens_the_export(self, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
        assert batching() == (100, 100, 5_000)
        assert caplog.messages == []
        with pytest.raises(SettingsError, match=r"200 spans \(batching=moderate/200\) is smaller"):
            batching(batching="moderate/200")

    @pytest.mark.parametrize(
        ("variables", "settings", "expected"),
        [
            ({}, {}, (2_048, 512)),
            ({"OTEL_BSP_MAX_QUEUE_SIZE": "1000"}, {}, (1_000, 512)),
            ({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, {}, (100, 100)),
            ({}, {"batching": "moderate/2500"}, (2_500, 512)),
        ],
    )
    def test_an_export_above_the_queue_is_ignored(self, monkeypatch, caplog, variables, settings, expected):
        for name, value in ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "3000"} | variables).items():
            monkeypatch.setenv(name, value)
        assert batching(**settings)[:2] == expected
        queue, batch = expected
        assert caplog.messages == [
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE holds 3000, above the queue of {queue}, and is ignored; so it is {batch}"
        ]

    def test_a_delay_may_be_as_long_as_the_specification_allows(self, monkeypatch):
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "2147483647")
        assert batching().delay == 2_147_483_647

    def test_the_standard_variable_is_where_the_setting_comes_from(self, monkeypatch):
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "5000")
        assert Settings().batching == "moderate/5000"
        assert Settings.origins()["batching"] == "OTEL_BSP_MAX_QUEUE_SIZE"
        assert batching().queue == 5000
        monkeypatch.setenv("MESHMW_BATCHING", "high")
        assert Settings.origins()["batching"] == "MESHMW_BATCHING"
        assert batching() == Batching(5000, 2048, 1000)

    def test_the_provider_is_built_with_it_and_this_machines_memory(self):
        provider, processor = build_provider(Settings(endpoint="127.0.0.1:9", batching="high/auto"))
        assert (processor._batch, processor._worker._seconds) == (2048, 1)
        assert 2048 <= processor.queue_capacity <= 65_536
        processor.shutdown_seconds = 0.1
        provider.shutdown()

    def test_what_does_not_batch_needs_no_queue(self):
        provider, _ = build_provider(Settings(exporter="none", batching="high/1"))
        provider.shutdown()
