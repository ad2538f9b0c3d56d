"""Recommends next items for one history: python examples/quickstart.py MODEL_FOLDER ID,ID,... (oldest item first)."""

import sys

from slmrec import Recommender


def main() -> None:
    """Prints the history and the five best next items, with titles where the model folder has them."""
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/quickstart.py MODEL_FOLDER ID,ID,...   (oldest item first)")
    folder, history = sys.argv[1], sys.argv[2].split(",")
    recommender = Recommender.from_pretrained(folder)
    answer = recommender.recommend([history], k=5)
    print("history:", "; ".join(recommender.title(item_id) or item_id for item_id in history))
    if answer.num_unknown:
        print(f"{answer.num_unknown} of these items are unknown to the model and were left out")
    for row in answer.table.to_pylist():
        item_id = row["item_id"]
        print(f"{row['rank']}. {recommender.title(item_id) or item_id}  (id {item_id}, score {row['score']:.2f})")


if __name__ == "__main__":
    main()
