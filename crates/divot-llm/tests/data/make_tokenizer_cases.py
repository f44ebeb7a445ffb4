"""Writes tokenizer/ and tokenizer_cases.json beside this script: a small SentencePiece BPE model with
added tokens, and what the slow LlamaTokenizer of transformers makes of many texts.

    pip install transformers==4.36.2 sentencepiece protobuf
    python make_tokenizer_cases.py
"""

import json
import pathlib
import random
import tempfile

import sentencepiece
from tokenizers import AddedToken
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "tokenizer"
# A special token that eats the spaces around it, which none of the model's own does.
TRIM = "<trim>"

SENTENCES = """
A red ball rolls down the hill and splashes into the blue lake.
Two children are throwing snow at each other in front of a wooden house.
The camera moves slowly over the rooftops while the sun goes down.
What is the man in the green jacket doing with the bicycle?
Generate a video of a small dog that is running along the beach.
He pours the milk, stirs it three times, and then he puts the cup away.
Describe what happens before the train arrives at the station.
It takes 12 minutes, 45 seconds; or rather 360 frames at 25 frames per second.
A woman cuts the bread, spreads the butter and smiles: "Here you are!"
This is the answer to the question, and that was the question to the answer.
fn main() {
    let  frames = clip.frames();
        println!("{frames}   frames");
}
Die Katze schläft auf dem Sofa, während es draußen regnet. Où est le café?
the the the thethe hehe there other another mother father feather weather
    """


def train(folder):
    """A BPE model with byte fallback, normalised as Llama's is."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join([SENTENCES] * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "model"), model_type="bpe", vocab_size=520,
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=1.0, minloglevel=2,
    )
    model = import_protobuf().ModelProto()
    model.ParseFromString((folder / "model.model").read_bytes())
    # Llama's runs of spaces were added after its training, all with one score.
    runs = {"▁" * n for n in range(2, 17)}
    kept = [piece for piece in model.pieces if piece.piece not in runs]
    del model.pieces[:]
    model.pieces.extend(kept)
    for run in sorted(runs, key=len):
        model.pieces.add(piece=run, score=-1e9)
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.ClearField("input")
    model.trainer_spec.model_prefix = "tokenizer"
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "tokenizer.model").write_bytes(model.SerializeToString())


def grow(draw):
    """Adds special tokens in no particular order, as the released tokenizer has them."""
    names = [f"<{slash}{kind}>" for kind in ("img", "vid", "frame") for slash in ("", "/")]
    names += [f"<frame_{i:05d}>" for i in range(4)]
    draw.shuffle(names)
    tokens = [AddedToken(name, normalized=False, special=True) for name in names]
    tokens.insert(3, AddedToken(TRIM, lstrip=True, rstrip=True, normalized=False, special=True))
    tokenizer = LlamaTokenizer(str(FOLDER / "tokenizer.model"), pad_token="<unk>", legacy=True)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.save_pretrained(str(FOLDER))


def texts(draw):
    yield from [
        "", " ", "  ", "     ", "\n", "\t", "▁", "▁▁", " ▁ ", "▁hello", "hello▁", "a", " a", "  a ",
        "[INST] Generate a video of a red ball. [/INST]\n",
        "[INST] <vid><frame><frame_00000><frame_00001></frame></vid>What is this? [/INST]\n",
        "The dog.<vid>", "The dog. <vid>", "<vid>The dog", "<vid> The dog", "<vid>  The dog  </vid>",
        " <vid>", "  <vid>", "▁<vid>", "<vid> ", "<vid></vid>", "<vid> </vid>", "<vid>\n</vid>",
        "<vid>▁</vid>", "<s>hello</s>", "<s> hello </s>", "<unk>hello", "hello<unk>", "<s>", " <s> ",
        f"{TRIM}hello", f"hello {TRIM} there", f"  {TRIM}  ", f"<vid>  {TRIM}\n</vid>", f"{TRIM} hello",
        "<vi", "<vid", "vid>", "<frame_0000", "<frame_99999>", "<<vid>>", "<frame<frame>", "<0x41>",
        "hello  world", "tabs\tand\nnew\r\nlines\n\n", "    let  frames", "12 345 6.78", "a" * 40,
        " " * 19, " " * 33, " " * 40 + "the", "the" * 20, "naïve café", "日本語 text", "😀", "a😀b <vid>😀</vid>", "👩‍👧", "e\u0301",
        "\u00a0", "a\u2003b", "\u3000<vid>\u3000", "\u0000", "\u007f\u0080", "\ufeff", "\ufffd", "ﬁ ½ Ａ",
    ]
    words = ["the", " the", "a", " ", "  ", "\n", "▁", "hello", " video", "😀", "é", ".", "<", ">", "12"]
    words += ["<vid>", "</vid>", "<frame>", "<frame_00002>", "<s>", "</s>", TRIM]
    for _ in range(100):
        text = "".join(draw.choices(words, k=draw.randint(2, 9)))
        # Without legacy the slow tokenizer takes ▁ for a space that such a token eats; ours does not.
        if not ("▁" in text and TRIM in text):
            yield text


def main():
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        train(pathlib.Path(folder))
    grow(draw)
    legacy, new = (LlamaTokenizer.from_pretrained(str(FOLDER), legacy=flag) for flag in (True, False))
    ids = lambda tokenizer, text: tokenizer.encode(text, add_special_tokens=False)
    encoded = [
        {"text": text, "legacy": ids(legacy, text), "new": ids(new, text)}
        for text in dict.fromkeys(texts(draw))
    ]
    # Bytes, whole and broken: SentencePiece writes one U+FFFD for each byte that is part of no character.
    byte, a = 3, legacy.convert_tokens_to_ids("a")
    decoded = []
    for size in range(1, 5):
        for _ in range(12):
            piece = draw.choices([0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0x41, 0xE3, 0x81, 0xFF], k=size)
            tokens = [byte + value for value in piece] + ([a] if draw.random() < 0.5 else [])
            decoded.append({"ids": tokens, "text": legacy.sp_model.decode(tokens)})
    lines = lambda items: ",\n".join(json.dumps(item) for item in items)
    (HERE / "tokenizer_cases.json").write_text(
        f'{{"encoded": [\n{lines(encoded)}\n], "decoded": [\n{lines(decoded)}\n]}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
