"""What folders and columns call the parts of split data: training, validation and test, in the spellings and languages
in use.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

TERMS = {
    "train": "train training trn learn learning fit entrainement apprentissage "
    "entrenamiento treino treinamento addestramento allenamento"
    " trainieren lernen trening treningowy uczenie egitim obuchenie "
    "обучение обучающая тренировка 训练 訓練 学習 학습 훈련",
    "val": "val valid validation validate validating dev devel development eval "
    "evaluation evaluate evaluating validierung validacion"
    " validacao validazione validatie walidacja dogrulama валидация проверка 验证 驗證 検証 評価 검증",
    "test": "test testing tst tests holdout heldout teste prueba pruebas prova "
    "collaudo testen testowy тест тестовая 测试 測試 テスト"
    " 테스트 시험",
}
_NEUTRAL = (
    "set sets data dataset datasets image images img imgs picture pictures pics "
    "photo photos file files sample samples split splits part"
    " public private all final raw original originals jpg jpeg png frames bilder "
    "bild daten satz jeu ensemble de d des du donnees conjunto"
    " dados datos dati immagini imagenes imagens 集 集合 数据 数据集 資料 セット データ 用 세트 데이터"
)
ENDS = ("", "set", "sets", "data", "images", "daten", "sdaten", "集", "用")
_PART_OF: dict[str, str] = {}


def _plain(text: str) -> str:
    """Lower the case and drop accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


for _part, _terms in TERMS.items():
    _PART_OF |= {_plain(term): _part for term in _terms.split()}
NEUTRAL = frozenset(map(_plain, _NEUTRAL.split()))


def parts_of(names: Sequence[str]) -> dict[str, str]:
    """Say which names stand for a part: name to `train`, `val` or `test`; the others are left out.

    `Train`, `training_set`, `TrainData`, `val2017` and `Entraînement` are known, and one such word among others where a
    name beside it has another one among the same, as in `seg_train` and `seg_test`.
    """
    found = {name: part for name in names if (part := part_of(name))}
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for name in (name for name in names if name not in found):
        words = _words(name)
        for place, word in enumerate(words):
            if part := _part_of([word]):
                alike.setdefault((*words[:place], "", *words[place + 1 :]), {})[name] = part
    return found | {
        name: part for group in alike.values() if len({*group.values()}) > 1 for name, part in group.items()
    }


def part_of(name: str) -> str | None:
    """Find the part that a single name stands for."""
    return _part_of(_words(name))


def is_neutral(name: str) -> bool:
    """Tell whether a folder's name says nothing of what it holds, such as `images`, `raw_files` or `2024-05-01`; `3`
    may be a class.
    """
    words = _words(name)
    return all(word in NEUTRAL for word in words) and bool(words or re.search(r"\d{4}", name))


def _words(name: str) -> list[str]:
    """Find the words of a name in lower case without accents and digits."""
    return re.findall(r"[^\W\d_]+", _plain(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)))


def _part_of(words: Sequence[str]) -> str | None:
    kept = "".join(word for word in words if word not in NEUTRAL)
    found = next((kept.removesuffix(end) for end in ENDS if kept.removesuffix(end) in _PART_OF), "")
    return _PART_OF.get(found)
