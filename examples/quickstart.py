"""Recommendations from a model folder: python examples/quickstart.py FOLDER ITEM,ITEM,..."""

import sys

from slmrec import Recommender

folder, history = sys.argv[1], sys.argv[2].split(",")
recommender = Recommender.from_pretrained(folder)
found = recommender.recommend([history], k=5)

print("history:", "; ".join(recommender.title(item) or item for item in history))
for row in found.table.to_pylist():
    print(f"{row['rank']}. {recommender.title(row['item_id']) or row['item_id']} ({row['score']:.2f})")
