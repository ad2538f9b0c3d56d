"""From raw logs to a data set."""

from typing import Any, Literal

from pydantic import Field, model_validator

from slmrec.config.section import Section, check


class PrepareConfig(Section):
    """From raw logs to the data-set folder."""

    input: str | None = None
    """The log: a file or a folder of parts, plain, .gz or .zst; for another engine, Parquet or the name of a table."""
    format: Literal["auto", "sequences", "csv", "tsv", "scsv", "ssv", "psv", "dat", "parquet", "jsonl", "reference"] = (
        "auto"
    )
    """`sequences` is one line a user (`user item item ...`); tables that are text have a comma (csv), tab (tsv),
    semicolon (scsv), space (ssv), | (psv) or :: (dat, as MovieLens) between their fields; `reference` is the paper's
    processed csv with lists; `auto` goes by the content."""
    columns: tuple[str, ...] | None = None
    """Names of all columns, in order, of a file without header, for example [user_id, item_id, rating, timestamp]."""
    user_col: str | None = None
    """The table's column of users; null: the usual names (user_id, reviewerID, userId)."""
    item_col: str | None = None
    """The table's column of items; null: the usual names (item_id, parent_asin, asin, movieId)."""
    time_col: str | None = None
    """The table's column of times, whole numbers or dates; null: the usual names (timestamp, unixReviewTime)."""
    rating_col: str | None = None
    """The table's column of ratings, read if a rule needs it; null: the usual names (rating, overall)."""
    tie_col: str | None = None
    """A column that orders events of the same time; null: they are in the order of the file (of another engine, whose
    rows have no order, in that of the item ids)."""
    items: str | None = None
    """A table of items with titles and whatever else is known of them, optional."""
    items_id_col: str | None = None
    """Its column of ids; null: the usual names (item_id, parent_asin, asin, movieId)."""
    title_col: str | None = None
    """Its column of titles; null: the usual names (title, movie_title, name)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with rows that are no events: stop at the first, or leave them out, count them, and write them to
    rejected.parquet."""
    preset: Literal["paper"] | None = None
    """`paper`: the rules of the reference's notebook (rating 3 or more, users of 5 events, items of 20, one pass, no
    repeats); what is set besides counts on top."""
    min_rating: float | None = None
    """Events of a lower rating are left out."""
    min_user_events: int = Field(3, ge=3)
    """Users of fewer events are left out; leave-one-out needs 3."""
    min_item_events: int = Field(1, ge=1)
    """Items of fewer events are left out."""
    core: Literal["fixed_point", "single_pass"] = "fixed_point"
    """Repeat the last two rules until both hold (k-core), or apply them once: to users, to items, and at the end to
    users again."""
    order: Literal["time", "file"] = "time"
    """A user's events are in the order of their times, or of the file."""
    repeats: Literal["keep", "drop", "merge"] = "keep"
    """An item again in a history: keep it, drop all but the first event, or merge those that follow one another."""
    max_history: int | None = Field(None, ge=3)
    """The newest events of a user that are kept; null: all."""
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """The last two events of each user are held out, or all events from one time on, for all users."""
    valid_share: float = Field(0.1, gt=0, lt=1)
    """Of a temporal split, the share of all events in the validation period."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """Of a temporal split, the share of all events in the test period, the newest."""
    engine: str = "duckdb"
    """What computes: `duckdb` (embedded), `spark`, or the connection URL of another Ibis backend."""
    memory_limit: str = "4GB"
    """Memory that DuckDB may take; what does not fit goes to the output's disk."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """Source: the reference's notebook; its thresholds are in the paper's description of the data sets."""
        if isinstance(values, dict) and values.get("preset") == "paper":
            paper = {"min_rating": 3, "min_user_events": 5, "min_item_events": 20}
            return paper | {"core": "single_pass", "repeats": "drop"} | values
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "PrepareConfig":
        check(
            self.split == "leave_one_out" or self.order == "time",
            "split: temporal needs order: time; leave order out, or use split: leave_one_out",
        )
        check(
            self.items is not None or not (self.items_id_col or self.title_col),
            "items_id_col and title_col are columns of items; give items, or leave them out",
        )
        check(
            self.valid_share + self.test_share < 1,
            f"valid_share and test_share add up to {self.valid_share + self.test_share}; leave something to train on",
        )
        return self
