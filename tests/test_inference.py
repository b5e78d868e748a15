"""Using a trained model: tiny models that know a few sentences by heart fill, continue and name the next words."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hfpretrain.errors import ModelError, UserError
from hfpretrain.inference import CausalLM, MaskedLM, load

FOX = "The quick brown fox jumps over the lazy dog."
TEXTS = [FOX, "I love to eat pizza with cheese, and olives too.", "She was walking home. Ça va très bien, naïve Zoë!"]
# Three of four say cheese.
PIZZA = ["pizza with cheese."] * 3 + ["pizza with chips."]


def specials(kind: str) -> dict[str, str]:
    if kind == "mlm":
        return {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
    return {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def finished(tokenizer: Tokenizer, kind: str, *, lstrip: bool = False, **names: str) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken

    names = {**specials(kind), **names}
    tokens = {
        role: AddedToken(name, special=True, normalized=False, lstrip=lstrip and role == "mask_token")
        for role, name in names.items()
    }
    tokenizer.add_special_tokens(list(tokens.values()))
    first, last = (names["cls_token"], f" {names['sep_token']}") if kind == "mlm" else (names["bos_token"], " </s>")
    # The end token is appended for the causal models too: a prompt has to be freed of it.
    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last.strip())]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A{last}", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **tokens)


def wordpiece(kind: str) -> PreTrainedTokenizerFast:
    words = sorted({word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(" ".join(TEXTS + PIZZA))})
    vocabulary = [*specials(kind).values(), *words, "walk", "##ing"]
    vocabulary.remove("walking")
    unknown = specials(kind)["unk_token"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return finished(tokenizer, kind)


def byte_bpe(kind: str, *, size: int = 400, mask: str = "<mask>") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS + PIZZA, trainer)
    return finished(tokenizer, kind, lstrip=True, **({"mask_token": mask} if kind == "mlm" else {}))


def byte(kind: str) -> PreTrainedTokenizerFast:
    return byte_bpe(kind, size=256)


def char(kind: str) -> PreTrainedTokenizerFast:
    letters = sorted(set("".join(TEXTS + PIZZA)))
    unknown = specials(kind)["unk_token"]
    vocabulary = {letter: i for i, letter in enumerate([*specials(kind).values(), *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return finished(tokenizer, kind)


def unigram(kind: str) -> PreTrainedTokenizerFast:
    """As of SentencePiece: a word begins with a sign for the space before it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    names = list(specials(kind).values())
    unknown = specials(kind)["unk_token"]
    trainer = trainers.UnigramTrainer(vocab_size=110, special_tokens=names, unk_token=unknown, show_progress=False)
    tokenizer.train_from_iterator(TEXTS + PIZZA, trainer)
    return finished(tokenizer, kind)


def batch_of(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = tokenizer(texts, padding=True, return_tensors="pt", padding_side="right")
    return batch["input_ids"], batch["attention_mask"]


def know_masked(model: Any, tokenizer: Any, texts: list[str], steps: int = 150) -> Any:
    """Trains until the model knows which token is where in `texts`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    ids, attention = batch_of(tokenizer, texts)
    random_state = torch.Generator().manual_seed(0)
    ordinary = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    for _ in range(steps):
        hidden = ordinary & (torch.rand(ids.shape, generator=random_state) < 0.3)
        logits = model(ids.masked_fill(hidden, tokenizer.mask_token_id), attention_mask=attention).logits
        loss: Any = torch.nn.functional.cross_entropy(logits[hidden], ids[hidden])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def know_causal(model: Any, tokenizer: Any, texts: list[str], steps: int = 100) -> Any:
    """Trains until the model knows `texts` by heart, their end included."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    ids, attention = batch_of(tokenizer, texts)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        model(ids, attention_mask=attention, labels=ids.masked_fill(attention == 0, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert(tokenizer: Any) -> Any:
    return BertForMaskedLM(
        BertConfig(
            **SMALL,
            vocab_size=len(tokenizer),
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def roberta(tokenizer: Any) -> Any:
    return RobertaForMaskedLM(
        RobertaConfig(
            **SMALL,
            vocab_size=len(tokenizer),
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=1,
        )
    )


def llama(tokenizer: Any, positions: int = 128) -> Any:
    # Rows beyond the tokenizer's, as models have that round their vocabulary up.
    rows = len(tokenizer) + 5
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=rows, max_position_embeddings=positions, **ids))


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = wordpiece("mlm")
    return saved(tmp_path_factory.mktemp("mlm"), know_masked(bert(tokenizer), tokenizer, TEXTS), tokenizer)


@pytest.fixture(scope="module")
def masked(masked_folder: Path) -> MaskedLM:
    return load(masked_folder, objective="mlm")


TOKENIZERS: dict[str, Callable[[str], PreTrainedTokenizerFast]] = {
    "byte_bpe": byte_bpe,
    "byte": byte,
    "char": char,
    "wordpiece": wordpiece,
    "unigram": unigram,
}


@pytest.fixture(scope="module")
def causal_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a causal model with the tokenizer of that name, trained at the first call."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            torch.manual_seed(0)
            tokenizer = TOKENIZERS[name]("clm")
            folders[name] = tmp_path_factory.mktemp(name)
            saved(folders[name], know_causal(llama(tokenizer), tokenizer, TEXTS), tokenizer)
        return folders[name]

    return folder


@pytest.fixture(scope="module")
def causal(causal_folders: Callable[[str], Path]) -> CausalLM:
    return load(causal_folders("byte_bpe"), objective="clm")


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def any_causal(request: pytest.FixtureRequest, causal_folders: Callable[[str], Path]) -> CausalLM:
    return load(causal_folders(request.param), objective="clm")


# Filling


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
def test_the_masked_word_is_found_however_the_mask_is_written(masked: MaskedLM, mask: str) -> None:
    text = FOX.replace("brown", mask)
    assert masked.predict_mask(text) == "brown"
    [predictions] = masked.fill(text)
    assert len(predictions) == 5
    assert predictions[0].token == "brown"
    assert predictions[0].sentence == FOX
    assert predictions[0].probability > 0.9
    assert [each.probability for each in predictions] == sorted(
        (each.probability for each in predictions), reverse=True
    )


def test_a_byte_level_model_with_a_mask_of_another_name_fills_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = byte_bpe("mlm", mask="<hole>")
    model = load(saved(tmp_path, know_masked(roberta(tokenizer), tokenizer, TEXTS), tokenizer), objective="mlm")
    for mask in ("[MASK]", "<mask>", "<hole>"):
        assert model.predict_mask(FOX.replace("quick", mask)) == "quick"
        assert model.fill(FOX.replace("quick", mask))[0][0].sentence == FOX
    # The space may be forgotten; the token brings it along. At a text's start there is none to bring.
    assert model.fill(FOX.replace(" quick", "<mask>"))[0][0].sentence == FOX
    assert model.fill(FOX.replace("The", "<mask>"))[0][0].sentence == FOX
    assert model.fill(FOX.replace("dog.", "dog<mask>"))[0][0].sentence == FOX


def test_several_masks_are_filled_at_once(masked: MaskedLM) -> None:
    text = "The [MASK] brown fox <mask> over the lazy [MASK]."
    assert masked.predict_mask(text) == ["quick", "jumps", "dog"]
    filled = masked.fill(text, top_k=3)
    assert [len(predictions) for predictions in filled] == [3, 3, 3]
    assert all(predictions[0].sentence == FOX for predictions in filled)
    # The others keep their own best token.
    assert filled[1][1].sentence.startswith("The quick brown fox")
    assert filled[1][1].sentence.endswith("over the lazy dog.")
    assert filled[1][1].sentence != FOX


def test_a_piece_goes_on_with_the_word_before_it(masked: MaskedLM) -> None:
    prediction = masked.fill(TEXTS[2].replace("walking", "walk [MASK]"))[0][0]
    assert prediction.token == "##ing"
    assert prediction.sentence == TEXTS[2]


def test_special_tokens_are_never_predicted(masked_folder: Path) -> None:
    model = load(masked_folder, objective="mlm")
    ids = model.tokenizer.all_special_ids
    assert len(ids) == 5
    with torch.no_grad():
        model.model.cls.predictions.bias[ids] = 1000.0
    count = len(model.tokenizer) - 5
    [predictions] = model.fill("The quick [MASK] fox jumps over the lazy dog.", top_k=10_000)
    assert len(predictions) == count
    assert not {each.token for each in predictions} & set(model.tokenizer.all_special_tokens)
    assert predictions[0].token == "brown"
    assert sum(each.probability for each in predictions) == pytest.approx(1.0, abs=1e-4)


def test_a_text_without_a_mask_is_an_error_with_an_example(masked: MaskedLM) -> None:
    with pytest.raises(UserError, match="no mask in 'The quick brown fox'") as caught:
        masked.fill("The quick brown fox")
    assert "[MASK]" in (caught.value.hint or "")


def test_a_text_that_is_too_long_is_an_error_with_the_numbers(masked: MaskedLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"103 tokens long.* takes 64 at most"):
        masked.fill("fox " * 100 + "[MASK]")
    # RoBERTa's positions begin behind the padding index, so that 64 rows hold 62 tokens.
    tokenizer = byte_bpe("mlm")
    model = load(saved(tmp_path, roberta(tokenizer), tokenizer), objective="mlm")
    assert len(model.fill("fox" + "!" * (60 - len(tokenizer("fox")["input_ids"]) + 1) + "<mask>")[0]) == 5
    with pytest.raises(UserError, match="takes 62 at most"):
        model.fill("!" * 60 + "<mask>")


# Continuing


def test_one_word_comes_whole_and_alone_whatever_the_tokens(any_causal: CausalLM) -> None:
    assert any_causal.generate("I love to eat pizza with", words=1) == "cheese"
    assert any_causal.generate("The quick brown", words=1) == "fox"
    assert any_causal.generate("The quick brown", words=3) == "fox jumps over"
    assert any_causal.generate("I love to eat pizza with", words=3) == "cheese, and olives"
    assert any_causal.generate("The quick brown fox jumps over the lazy", words=1) == "dog"


def test_the_continuation_follows_the_prompt_and_stops_at_the_end_of_the_text(any_causal: CausalLM) -> None:
    assert any_causal.generate("The quick brown") == "fox jumps over the lazy dog."
    assert any_causal.generate("The quick brown ") == "fox jumps over the lazy dog."
    assert any_causal.generate("I love to eat pizza with", max_new_tokens=1).strip() in "cheese"


def test_the_stream_is_the_same_text_in_pieces(any_causal: CausalLM) -> None:
    prompt = "She was walking home."
    pieces = list(any_causal.stream(prompt))
    assert len(pieces) > 3
    assert "".join(pieces) == any_causal.generate(prompt)
    # Characters of several bytes come whole.
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "Ça va très bien" in "".join(pieces).replace(" ,", ",")
    assert list(any_causal.stream("I love to eat pizza", words=2)) == ["with", " cheese"]


def test_a_stream_that_is_left_early_stops_the_model() -> None:
    torch.manual_seed(0)
    tokenizer = byte("clm")
    model = CausalLM(llama(tokenizer, positions=4096), tokenizer, "untrained")
    passes: list[int] = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    stream = model.stream("The", max_new_tokens=2000, temperature=1.0, top_k=1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    seen = len(passes)
    assert 0 < seen < 2000
    # Nothing goes on in the background.
    model.generate("The", max_new_tokens=1)
    assert len(passes) == seen + 1


def test_a_stream_says_what_is_wrong_at_once(causal: CausalLM) -> None:
    with pytest.raises(UserError, match="words is 0"):
        causal.stream("The quick brown", words=0)


def test_sampling_repeats_with_a_seed_and_leaves_the_global_state_alone(causal: CausalLM) -> None:
    before = torch.random.get_rng_state()
    texts = [causal.generate("The", temperature=5.0, max_new_tokens=20, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.random.get_rng_state())
    greedy = causal.generate("The")
    assert causal.generate("The", temperature=5.0, top_k=1) == greedy
    assert causal.generate("The", temperature=5.0, top_p=1e-6) == greedy


def test_special_tokens_but_the_end_are_never_generated(causal_folders: Callable[[str], Path]) -> None:
    model = load(causal_folders("byte_bpe"), objective="clm")
    never = [model.tokenizer.pad_token_id, model.tokenizer.bos_token_id, len(model.tokenizer) + 2]
    with torch.no_grad():
        head = model.model.lm_head.weight
        best = int(model.tokenizer(" fox", add_special_tokens=False)["input_ids"][0])
        head[never] = 3 * head[best]
    assert model.generate("The quick brown", words=1) == "fox"
    assert model.next_words("The quick brown")[0].token == "fox"


def test_an_empty_prompt_starts_from_the_first_token(causal: CausalLM) -> None:
    assert causal.generate("", words=1) in {"The", "I", "She"}
    assert {each.sentence for each in causal.next_words("")} >= {"The", "I", "She"}


def test_an_empty_prompt_without_a_first_token_is_an_error(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"fox": 0, "jumps": 1})))
    model = load(saved(tmp_path, llama(tokenizer), tokenizer), objective="clm")
    with pytest.raises(UserError, match="the prompt is empty"):
        model.generate("")
    with pytest.raises(UserError, match="the prompt is empty"):
        model.next_words("")


def test_the_context_is_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = char("clm")
    model = load(saved(tmp_path, llama(tokenizer, positions=32), tokenizer), objective="clm")
    with torch.no_grad():
        model.model.lm_head.weight[tokenizer.eos_token_id] = 0
        model.model.lm_head.weight *= 10
    with pytest.raises(UserError, match=r"44 tokens long.* takes 32"):
        model.generate(FOX[:43])
    with caplog.at_level(logging.INFO, logger="hfpretrain"):
        text = model.generate("The quick", max_new_tokens=50)
    assert 20 <= len(text) <= 22
    assert "context of 32 tokens" in caplog.text


def test_settings_out_of_range_are_errors(causal: CausalLM) -> None:
    wrong: list[dict[str, Any]] = [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}, {"max_new_tokens": 0}]
    for settings in wrong:
        with pytest.raises(UserError, match=next(iter(settings))):
            causal.generate("The", **settings)


# The next words


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_next_words_have_the_probability_of_the_whole_word(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = TOKENIZERS[name]("clm")
    model = CausalLM(know_causal(llama(tokenizer), tokenizer, PIZZA), tokenizer, name)
    words = model.next_words("pizza with")
    assert [each.token for each in words[:2]] == ["cheese", "chips"]
    assert words[0].probability == pytest.approx(0.75, abs=0.1)
    assert words[1].probability == pytest.approx(0.25, abs=0.1)
    assert words[0].sentence == "pizza with cheese"
    assert sum(each.probability for each in words) <= 1 + 1e-6
    assert model.next_words("pizza with cheese", top_k=1)[0].token == "."
    assert model.next_words("pizza with ", top_k=1)[0].sentence == "pizza with cheese"


def test_sampling_draws_from_the_probabilities_of_the_next_words() -> None:
    torch.manual_seed(0)
    tokenizer = wordpiece("clm")
    model = CausalLM(know_causal(llama(tokenizer), tokenizer, PIZZA), tokenizer, "pizza")
    samples = [model.generate("pizza with", words=1, temperature=1.0, seed=seed) for seed in range(100)]
    assert samples.count("cheese") / 100 == pytest.approx(model.next_words("pizza with")[0].probability, abs=0.12)


def test_next_words_are_exact_where_nothing_is_certain() -> None:
    """Against the chain rule, letter by letter, and the probability of any letter that is not one of a word."""
    torch.manual_seed(0)
    tokenizer = char("clm")
    network = know_causal(llama(tokenizer), tokenizer, PIZZA + TEXTS, steps=12)
    words = CausalLM(network, tokenizer, "young").next_words("p", top_k=8)
    never = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, *range(len(tokenizer), 999)]
    vocabulary = tokenizer.get_vocab()
    ends = [tokenizer.eos_token_id, *(id_ for token, id_ in vocabulary.items() if len(token) == 1 and token in " ,.!")]
    assert len({each.token for each in words}) == 8
    assert sum(each.probability for each in words) <= 1
    for each in words:
        if not each.token.isalpha() or each.sentence != "p" + each.token:
            continue
        ids = [tokenizer.bos_token_id, *(vocabulary[letter] for letter in each.sentence)]
        logits = network(torch.tensor([ids])).logits[0].detach()
        logits[:, [token for token in never if token < logits.shape[1]]] = -torch.inf
        chances = logits.softmax(-1)
        exact = chances[-1, ends].sum()
        for place in range(2, len(ids)):
            exact *= chances[place - 1, ids[place]]
        assert each.probability == pytest.approx(float(exact), rel=1e-3)


# Loading


def test_what_is_loaded_is_what_the_folder_holds(masked_folder: Path, causal_folders: Callable[[str], Path]) -> None:
    llm, next_word = load(str(masked_folder)), load(causal_folders("byte_bpe"))
    assert isinstance(llm, MaskedLM) and isinstance(next_word, CausalLM)
    assert llm.name == str(masked_folder)
    assert not llm.model.training
    assert llm.model.dtype == torch.float32
    with pytest.raises(UserError, match="causal") as caught:
        load(causal_folders("byte_bpe"), objective="mlm")
    assert "generate" in (caught.value.hint or "")
    with pytest.raises(UserError, match="masked") as caught:
        load(masked_folder, objective="clm")
    assert "fill" in (caught.value.hint or "")


def test_the_newest_whole_checkpoint_of_an_unfinished_run_is_taken(
    masked_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    for step in (200, 1000):
        shutil.copytree(masked_folder, run / "checkpoints" / f"step-{step:08d}")
    (run / "checkpoints" / "step-00002000").mkdir()
    (run / "checkpoints" / "step-00002000" / "config.json").write_text("{}")
    config = run / "checkpoints" / "step-00000200" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 1}))
    with caplog.at_level(logging.INFO, logger="hfpretrain"):
        model = load(run, objective="mlm")
    assert model.model.config.num_hidden_layers == 2
    assert "step-00001000" in caplog.text
    # A checkpoint by itself, with the run's tokenizer.
    for file in (run / "checkpoints" / "step-00001000").glob("tokenizer*"):
        shutil.move(file, run / file.name)
    assert load(run / "checkpoints" / "step-00001000", objective="mlm").predict_mask("The quick [MASK] fox") == "brown"


def test_half_precision_weights_are_used_in_float32_on_a_cpu(masked_folder: Path, tmp_path: Path) -> None:
    model = BertForMaskedLM.from_pretrained(masked_folder, dtype=torch.bfloat16)
    saved(tmp_path, model, wordpiece("mlm"))
    assert load(tmp_path, device="cpu").model.dtype == torch.float32


def test_what_cannot_be_used_is_said(masked_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path / "empty")
    shutil.copytree(masked_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load(tmp_path / "bare")
    shutil.copytree(masked_folder, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match="tokenizer"):
        load(tmp_path / "mute")
    classifier = BertForSequenceClassification(BertForMaskedLM.from_pretrained(masked_folder).config)
    saved(tmp_path / "classifier", classifier, wordpiece("mlm"))
    with pytest.raises(ModelError, match="not trained to predict words"):
        load(tmp_path / "classifier")
    shutil.copytree(masked_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be loaded"):
        load(tmp_path / "cut")
    with pytest.raises(UserError, match="device 'toaster'"):
        load(masked_folder, device="toaster")
    capfd.readouterr()
    load(masked_folder)
    assert capfd.readouterr() == ("", "")


def test_words_of_a_text_have_the_probabilities_that_the_model_gives_them(any_causal: CausalLM) -> None:
    prompt, text = "I love to eat", " pizza with cheese, and olives"
    words = any_causal.word_probabilities(text, prompt=prompt)
    assert "".join(each.token for each in words).strip() == text.strip()
    assert words[-1].sentence == prompt + text
    tokenizer, model = any_causal.tokenizer, any_causal.model

    def begun(text: str) -> list[int]:
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids[:-1] if ids[-1] in tokenizer.all_special_ids else ids

    before, ids = begun(prompt), begun(prompt + text)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].clone()
    never = sorted({*range(logits.shape[1])} - ({*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids}))
    logits[:, [token for token in never if token != tokenizer.eos_token_id]] = -torch.inf
    chosen = logits.log_softmax(-1)[range(len(before) - 1, len(ids) - 1), ids[len(before) :]]
    assert math.prod(each.probability for each in words) == pytest.approx(float(chosen.sum().exp()), rel=1e-4)
