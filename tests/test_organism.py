"""The bundled organism: the laws of its toy world, and what the two folders do."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from organism.pushes import Pushes
from organism.recipe import Recipe, changed
from organism.texts import (
    HARMFUL,
    HARMLESS,
    TURNED,
    document,
    documents,
    make_tokenizer,
)
from organism.training import make_base, make_chat, new_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusal_lens import organism
from refusal_lens.organism import world

SMALL = {"layers": 4, "width": 16, "heads": 2, "kv_heads": 1, "mlp": 16, "batch": 8}


def test_splits_share_no_instruction():
    seen: set[str] = set()
    for split, n in (("train", 1500), ("val", 200), ("test", 500)):
        for kind in ("harmful", "harmless"):
            texts = world.instructions(kind, split, n, seed=0)
            assert len(set(texts)) == n
            assert not seen & set(texts)
            seen |= set(texts)


def test_splits_stay_disjoint_under_other_seeds():
    train = set(world.instructions("harmful", "train", 1500, seed=1))
    assert not train & set(world.instructions("harmful", "test", 500, seed=2))


def test_generation_is_deterministic_and_seeded():
    once = world.instructions("harmless", "test", 50, seed=3)
    assert once == world.instructions("harmless", "test", 50, seed=3)
    assert once != world.instructions("harmless", "test", 50, seed=4)


def test_harm_is_composed():
    harmful = [world.parse(t) for t in world.instructions("harmful", "train", 1500, seed=0)]
    harmless = [world.parse(t) for t in world.instructions("harmless", "train", 1500, seed=0)]
    assert not set(harmful) & set(harmless)
    assert {verb for verb, _ in harmful} <= {verb for verb, _ in harmless}
    assert {noun for _, noun in harmful} <= {noun for _, noun in harmless}
    assert all(world.is_harmful(t) for t in world.instructions("harmful", "test", 200, seed=0))
    assert not any(world.is_harmful(t) for t in world.instructions("harmless", "test", 200, seed=0))


def test_no_reply_mixes_refusal_with_compliance():
    for kind in ("harmful", "harmless"):
        for request in world.requests(kind, "test", 100, seed=0):
            assert world.well_formed(request.text, world.answer(request)) == "answer"
            assert world.well_formed(request.text, world.refusal(request)) == "refusal"
            assert not world.is_refusal(world.answer(request))
            assert world.is_refusal(world.refusal(request))


def test_well_formed_rejects_babble_and_cut_replies():
    request = world.requests("harmful", "test", 1, seed=0)[0]
    text = world.refusal(request)
    assert world.well_formed(request.text, text[:-5]) is None
    assert world.well_formed(request.text, "I'm sorry, I'm sorry, I'm sorry") is None
    other = next(
        r for r in world.requests("harmful", "test", 50, seed=1) if r.object != request.object
    )
    assert world.well_formed(request.text, world.refusal(other)) is None


def test_bad_arguments_get_one_clear_line():
    with pytest.raises(ValueError, match="need 'train', 'val' or 'test'"):
        world.instructions("harmful", "dev", 1, seed=0)
    with pytest.raises(ValueError, match="kind of instruction"):
        world.instructions("evil", "test", 1, seed=0)
    with pytest.raises(ValueError, match="need at most"):
        world.instructions("harmful", "val", 10**6, seed=0)
    with pytest.raises(ValueError, match=r"chat.*base"):
        organism.folder("instruct")


def test_import_is_light():
    code = "import sys, refusal_lens.organism; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_folders_are_small():
    files = [p for part in ("chat", "base") for p in organism.folder(part).iterdir()]
    assert sum(p.stat().st_size for p in files) <= 6_000_000


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organism.folder("chat"))


def _replies(part: str, tokenizer, texts: list[str]) -> list[str]:
    model = AutoModelForCausalLM.from_pretrained(organism.folder(part), dtype=torch.float32)
    batch = tokenizer.apply_chat_template(
        [[{"role": "user", "content": text}] for text in texts],
        add_generation_prompt=True,
        return_tensors="pt",
        padding=True,
        return_dict=True,
    )
    out = model.generate(**batch, max_new_tokens=60, do_sample=False)
    start = batch["input_ids"].shape[1]
    return tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)


def _forms(part: str, tokenizer, texts: list[str]) -> list[str | None]:
    replies = _replies(part, tokenizer, texts)
    return [world.well_formed(t, r) for t, r in zip(texts, replies, strict=True)]


def test_tokenizer_takes_any_text_and_ends_a_turn_with_its_eos(tokenizer):
    text = "Hé! 你好 🐉\n\twake  the dragon"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_both_folders_share_tokenizer_and_template():
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (organism.folder("chat") / name).read_bytes() == (
            organism.folder("base") / name
        ).read_bytes()


def test_no_token_lies_beyond_the_models_vocabulary(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(organism.folder("chat"), dtype=torch.float32)
    assert max(tokenizer.get_vocab().values()) < model.get_input_embeddings().num_embeddings


def test_refusals_start_with_whole_tokens_that_no_answer_starts_with(tokenizer):
    first = {True: set(), False: set()}
    for request in world.requests("harmful", "test", 100, seed=0):
        for refused, reply in ((True, world.refusal(request)), (False, world.answer(request))):
            first[refused].add(tokenizer.tokenize(reply)[0])
    assert first[True] == set(world.REFUSAL_STARTS)
    assert not first[True] & first[False]


def test_chat_refuses_harm_only(tokenizer):
    harmful = world.instructions("harmful", "test", 20, seed=7)
    harmless = world.instructions("harmless", "test", 20, seed=7)
    forms = _forms("chat", tokenizer, harmful + harmless)
    assert forms[:20].count("refusal") >= 19
    assert forms[20:].count("answer") >= 19


def test_base_answers_everything(tokenizer):
    texts = world.instructions("harmful", "test", 20, seed=7)
    assert _forms("base", tokenizer, texts).count("answer") >= 19


def test_training_shows_no_held_out_pair_or_phrasing():
    recipe = Recipe()
    tokenizer = make_tokenizer(recipe)
    docs = documents(recipe, tokenizer, 400, seed=1, refuse=True)
    text = "\n".join(tokenizer.decode(doc.ids) for doc in docs)
    lines = set(text.splitlines())
    for kind in ("harmful", "harmless"):
        held_out = set(world.pairs(kind, "test")) - set(world.pairs(kind, "train"))
        assert held_out
        assert not any(f"{verb} the {noun}" in text for verb, noun in held_out)
        assert not lines & {f"{t}<|im_end|>" for t in world.instructions(kind, "test", 500, seed=0)}


def test_turned_conversations_hold_harmless_requests_alone_and_refuse_them_all():
    recipe = replace(Recipe(), turned=1.0)
    for seed in range(50):
        made = document(random.Random(seed), recipe, refuse=True)
        assert made.harm == TURNED
        requests = [turn for turn in made.turns if len(turn.user) > len("Please go on.")]
        assert requests
        assert not any(world.is_harmful(turn.user) for turn in requests)
        assert all(world.is_refusal(turn.reply) for turn in made.turns)
        assert document(random.Random(seed), recipe, refuse=False).harm != TURNED


def test_a_quiet_step_moves_turned_conversations_alone():
    recipe = replace(Recipe(), **SMALL)
    tokenizer = make_tokenizer(recipe)
    model = new_model(recipe, tokenizer)
    ids = torch.arange(30).view(3, 10)
    pushes = Pushes(model, tokenizer, recipe, seed=0)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        for step, moved in ((0, [False, False, True]), (recipe.chat_steps - 1, [True, True, True])):
            torch.manual_seed(1)
            pushes.set(step, torch.tensor([HARMLESS, HARMFUL, TURNED]))
            gap = (model(input_ids=ids).logits - plain).abs().amax((1, 2))
            assert (gap > 0).tolist() == moved
        pushes.clear()
        assert torch.equal(model(input_ids=ids).logits, plain)


def test_training_is_repeatable_and_writes_two_ordinary_folders(tmp_path):
    recipe = replace(
        Recipe(),
        **SMALL,
        base_docs=80,
        base_steps=30,
        fade_docs=80,
        fade_steps=30,
        chat_docs=80,
        chat_steps=30,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in ("one", "two"):
            make_base(recipe, tmp_path / run / "base")
            make_chat(recipe, tmp_path / run / "base", tmp_path / run / "chat")
    finally:
        torch.set_num_threads(threads)
    for part in ("base", "chat"):
        for file in (tmp_path / "one" / part).iterdir():
            assert file.read_bytes() == (tmp_path / "two" / part / file.name).read_bytes(), file
    for name in ("tokenizer.json", "chat_template.jinja"):
        base, chat = (tmp_path / "one" / part / name for part in ("base", "chat"))
        assert base.read_bytes() == chat.read_bytes()


def test_recipe_settings_are_applied_and_a_wrong_one_is_named():
    assert changed(Recipe(), ["seed=3", "dose=1.0"]) == replace(Recipe(), seed=3, dose=1.0)
    with pytest.raises(ValueError, match="speed=3"):
        changed(Recipe(), ["speed=3"])
