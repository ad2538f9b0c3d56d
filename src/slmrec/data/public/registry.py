"""Public data sets: addresses and checksums of their files, descriptions, and terms of use."""

import difflib
from dataclasses import dataclass
from typing import Literal

from slmrec.errors import DataError

Algorithm = Literal["md5", "sha256"]


@dataclass(frozen=True)
class Checksum:
    """The checksum of a file."""

    algorithm: Algorithm
    digest: str
    """Hexadecimal, in lower case."""

    def __str__(self) -> str:
        return f"{self.algorithm} {self.digest}"


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded."""

    address: str
    checksum: Checksum | None = None
    """The checksum that the publisher states; None if there is none."""
    num_bytes: int | None = None
    """The size; None if it is unknown."""

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rpartition("/")[2]


@dataclass(frozen=True)
class PublicDataset:
    """A data set that can be downloaded by name."""

    name: str
    about: str
    files: tuple[RemoteFile, ...]
    events: str
    """The file of interactions, relative to the download folder after unpacking."""
    items: str
    """The file with the titles of items, relative to the download folder after unpacking."""
    terms: str
    citation: str


def find_dataset(name: str) -> PublicDataset:
    """Return the data set with a name.

    Raises:
        DataError: there is no such data set.
    """
    names = [dataset.name for dataset in DATASETS]
    if name in names:
        return DATASETS[names.index(name)]
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        raise DataError(
            f"data set {name!r} is unknown; did you mean {' or '.join(close)}? `slmrec data fetch` lists all"
        )
    raise DataError(f"data set {name!r} is unknown; expected one of {', '.join(names)}")


_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_MCAULEY_LAB = "https://mcauleylab.ucsd.edu/public_datasets/data"

_AMAZON_TERMS = (
    "The publisher states no licence: reviews and product data remain those of their authors and of Amazon, and are "
    "offered for research, with the request to cite the paper. See {page}"
)


def _movielens(size: str, about: str, md5: str, num_bytes: int, events: str, items: str, readme: str) -> PublicDataset:
    folder = f"ml-{size}"
    return PublicDataset(
        name=f"movielens-{size}",
        about=about,
        files=(RemoteFile(f"{_GROUPLENS}/{folder}.zip", Checksum("md5", md5), num_bytes),),
        events=f"{folder}/{events}",
        items=f"{folder}/{items}",
        terms=(
            "For research, with acknowledgement in publications; commercial use only with the permission of GroupLens, "
            "which also restricts redistribution, and without implying endorsement by GroupLens or the University of "
            f"Minnesota. See {_GROUPLENS}/{folder}-{readme}"
        ),
        citation=(
            "F. Maxwell Harper and Joseph A. Konstan. The MovieLens Datasets: History and Context. ACM Transactions "
            "on Interactive Intelligent Systems 5(4), 2015. https://doi.org/10.1145/2827872"
        ),
    )


def _amazon2014(name: str, category: str) -> PublicDataset:
    return PublicDataset(
        name=f"amazon2014-{name}",
        about=f"Amazon 2014, {category.replace('_', ' ')}, users and items with at least 5 reviews",
        files=(
            RemoteFile(f"{_SNAP}/reviews_{category}_5.json.gz"),
            RemoteFile(f"{_SNAP}/meta_{category}.json.gz"),
        ),
        events=f"reviews_{category}_5.json.gz",
        items=f"meta_{category}.json.gz",
        terms=_AMAZON_TERMS.format(page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"),
        citation=(
            "Ruining He and Julian McAuley. Ups and Downs: Modeling the Visual Evolution of Fashion Trends with "
            "One-Class Collaborative Filtering. WWW 2016. https://doi.org/10.1145/2872427.2883037"
        ),
    )


def _amazon2018(name: str, category: str, paper: str) -> PublicDataset:
    return PublicDataset(
        name=f"amazon2018-{name}",
        about=f"Amazon 2018, {category.replace('_', ' ')}, at least 5 reviews; {paper} in the SLMRec paper",
        files=(
            RemoteFile(f"{_MCAULEY_LAB}/amazon_v2/categoryFilesSmall/{category}_5.json.gz"),
            RemoteFile(f"{_MCAULEY_LAB}/amazon_v2/metaFiles2/meta_{category}.json.gz"),
        ),
        events=f"{category}_5.json.gz",
        items=f"meta_{category}.json.gz",
        terms=_AMAZON_TERMS.format(page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"),
        citation=(
            "Jianmo Ni, Jiacheng Li and Julian McAuley. Justifying Recommendations using Distantly-Labeled Reviews "
            "and Fine-Grained Aspects. EMNLP 2019. https://aclanthology.org/D19-1018"
        ),
    )


def _amazon2023(name: str, category: str) -> PublicDataset:
    return PublicDataset(
        name=f"amazon2023-{name}",
        about=f"Amazon 2023, {category.replace('_', ' ')}, all reviews",
        files=(
            RemoteFile(f"{_MCAULEY_LAB}/amazon_2023/raw/review_categories/{category}.jsonl.gz"),
            RemoteFile(f"{_MCAULEY_LAB}/amazon_2023/raw/meta_categories/meta_{category}.jsonl.gz"),
        ),
        events=f"{category}.jsonl.gz",
        items=f"meta_{category}.jsonl.gz",
        terms=_AMAZON_TERMS.format(page="https://amazon-reviews-2023.github.io/"),
        citation=(
            "Yupeng Hou, Jiacheng Li, Zhankui He, An Yan, Xiusi Chen and Julian McAuley. Bridging Language and Items "
            "for Retrieval and Recommendation. 2024. https://arxiv.org/abs/2403.03952"
        ),
    )


DATASETS = (
    _movielens(
        "100k",
        "100,000 ratings of 1,682 films by 943 users",
        "0e33842e24a9c977be4e0107933c0723",
        4_924_029,
        "u.data",
        "u.item",
        "README.txt",
    ),
    _movielens(
        "1m",
        "1,000,209 ratings of about 3,900 films by 6,040 users",
        "c4d9eecfca2ab87c1945afe126590906",
        5_917_549,
        "ratings.dat",
        "movies.dat",
        "README.txt",
    ),
    _movielens(
        "20m",
        "20,000,263 ratings of 27,278 films by 138,493 users",
        "cd245b17a1ae2cc31bb14903e1204af3",
        198_702_078,
        "ratings.csv",
        "movies.csv",
        "README.html",
    ),
    _movielens(
        "25m",
        "25,000,095 ratings of 62,423 films by 162,541 users",
        "6b51fb2759a8657d3bfcbfc42b592ada",
        261_978_986,
        "ratings.csv",
        "movies.csv",
        "README.html",
    ),
    _movielens(
        "32m",
        "32,000,204 ratings of 87,585 films by 200,948 users",
        "d472be332d4daa821edc399621853b57",
        238_950_008,
        "ratings.csv",
        "movies.csv",
        "README.html",
    ),
    _amazon2014("beauty", "Beauty"),
    _amazon2014("toys", "Toys_and_Games"),
    _amazon2014("sports", "Sports_and_Outdoors"),
    _amazon2018("clothing", "Clothing_Shoes_and_Jewelry", "Cloth"),
    _amazon2018("movies", "Movies_and_TV", "Movie"),
    _amazon2018("music", "CDs_and_Vinyl", "Music"),
    _amazon2018("sports", "Sports_and_Outdoors", "Sport"),
    _amazon2023("all-beauty", "All_Beauty"),
    _amazon2023("sports", "Sports_and_Outdoors"),
)
