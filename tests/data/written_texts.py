"""Texts in folders and tables, as a place may have them."""

import csv
import json


def words(number):
    """A text that no other number has."""
    return f"text {number} {'x' * (1 + number % 7)}"


def write_folder(root, splits, classes=("bad", "good")):
    """`root/split/class/number.txt`; splits with their texts a class, or one number for none."""
    number = 0
    for split, count in (splits if isinstance(splits, dict) else {"": splits}).items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                (root / split / name / f"{index}.txt").write_text(words(number) + "\n", encoding="utf-8")
                number += 1
    return root


def table(path, rows, columns=("text", "label")):
    """A file of such rows, as other programs write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        else:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([columns, *rows])
    return path


ROWS = [(words(number), ("good", "bad", "plain")[number % 3]) for number in range(40)]


def examples_of(task, split):
    source = task.split(split)
    return sorted(source[index] for index in range(len(source)))
