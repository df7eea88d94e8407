import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import fc from "fast-check";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { createRng } from "#common/domain/rng.js";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { evaluationBatches, MASKED, sampleBatch, samplePackedBatch } from "#agent/data/batches.js";
import { Datasets } from "#agent/data/datasets.js";
import { describeSkipped, parseJsonl } from "#agent/data/documents.js";
import { folderSource } from "#agent/data/source.js";
import { splitDocuments } from "#agent/data/split.js";
import { openTokenizer, type Tokenizer } from "#agent/data/tokenizers.js";

function tokenizer(spec: Partial<TokenizerSpec>, blob?: Uint8Array): Tokenizer {
  const opened = openTokenizer(TokenizerSpec.fromPartial(spec), blob);
  if (!opened.ok) throw new Error(opened.problem);
  return opened.tokenizer;
}

const bytes = tokenizer({ kind: "bytes" });

async function folder(t: ExecutionContext, files: Record<string, string | Uint8Array>): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), "shoal-data-"));
  t.teardown(() => rm(path, { recursive: true }));
  for (const [name, content] of Object.entries(files)) {
    await mkdir(join(path, name, ".."), { recursive: true });
    await writeFile(join(path, name), content);
  }
  return path;
}

test("bytes go there and back, and stay below 256", (t) => {
  fc.assert(
    fc.property(fc.string({ unit: "grapheme" }), (text) => {
      const tokens = bytes.encode(text);
      t.is(bytes.decode([...tokens]), text);
      t.true(tokens.every((token) => token >= 0 && token < 256));
    }),
  );
});

test("characters of the alphabet go there and back, others are skipped", (t) => {
  const alphabet = "\n abcé😀";
  const chars = tokenizer({ kind: "chars", chars: alphabet });
  t.is(chars.vocabulary, 7);
  t.deepEqual([...chars.encode("a😀xé\n")], [2, 6, 5, 0]);
  t.deepEqual([...chars.separator], [0]);
  const unit = fc.constantFrom(...Array.from(alphabet), "x", "Z", "ß");
  fc.assert(
    fc.property(fc.string({ unit }), (text) => {
      const kept = Array.from(text)
        .filter((character) => alphabet.includes(character))
        .join("");
      t.is(chars.decode([...chars.encode(text)]), kept);
    }),
  );
});

test("a tokenizer.json is read, with the end of text as separator", (t) => {
  const json = {
    version: "1.0",
    added_tokens: [
      {
        id: 3,
        content: "<|endoftext|>",
        special: true,
        lstrip: false,
        rstrip: false,
        normalized: false,
        single_word: false,
      },
    ],
    normalizer: null,
    pre_tokenizer: { type: "Whitespace" },
    post_processor: null,
    decoder: null,
    model: { type: "WordLevel", vocab: { "[UNK]": 0, hello: 1, sea: 2 }, unk_token: "[UNK]" },
  };
  const words = tokenizer({ kind: "huggingface" }, new TextEncoder().encode(JSON.stringify(json)));
  t.deepEqual([...words.encode("hello sea fish")], [1, 2, 0]);
  t.deepEqual([...words.separator], [3]);
  t.is(words.vocabulary, 4);
});

test("tokenizers that cannot be opened say why", (t) => {
  const problem = (spec: Partial<TokenizerSpec>, blob?: Uint8Array): string => {
    const opened = openTokenizer(TokenizerSpec.fromPartial(spec), blob);
    return opened.ok ? "" : opened.problem;
  };
  t.regex(problem({ kind: "words" }), /"words" is not known.*bytes, chars and huggingface/);
  t.regex(problem({ kind: "chars", chars: "aa" }), /none twice/);
  t.regex(problem({ kind: "huggingface" }), /needs a tokenizer.json/);
  t.regex(problem({ kind: "huggingface" }, new TextEncoder().encode("{")), /cannot be used/);
  t.regex(problem({ kind: "huggingface" }, new TextEncoder().encode("{}")), /cannot be used/);
});

test("foreign and truncated lines are counted with file, line and remedy, and are not fatal", (t) => {
  const content = '{"text": "one"}\r\n\nnot json\n{"body": "x"}\n{"text": 5}\n{"text": "two"}\n{"text": "th';
  const { texts, skipped } = parseJsonl("a.jsonl", content);
  t.deepEqual(texts, ["one", "two"]);
  t.like(skipped, { count: 4, firstLine: 3 });
  t.is(
    skipped && describeSkipped(skipped),
    'a.jsonl:3: not JSON; each line must be one JSON object such as {"text": "..."} (and 3 more lines of this file)',
  );
  const cut = parseJsonl("b.jsonl", '{"text": "whole"}\n{"text": "cut o').skipped;
  t.is(cut && describeSkipped(cut), "b.jsonl:2: the last line is cut off; write the file again or remove the line");
});

test("any bytes in a .jsonl file leave the good lines readable", (t) => {
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.string(), fc.json())), (lines) => {
      const garbage = lines.map((line) => line.replaceAll("\n", " "));
      const { texts } = parseJsonl("x.jsonl", [...garbage, '{"text": "good"}'].join("\n"));
      t.is(texts.at(-1), "good");
    }),
  );
});

test("a folder is counted: documents, bytes, and what is wrong with it", async (t) => {
  const path = await folder(t, {
    "a.txt": "hello",
    "sub/b.jsonl": '{"text": "sea"}\n{"text": ""}\nbroken\n',
    "c.md": "ignored",
  });
  const log = new MemoryLog();
  const sources = new Map([
    ["notes", folderSource(path)],
    ["empty", folderSource(await folder(t, { "x.jsonl": "rubbish\n" }))],
    ["absent", folderSource(join(path, "nowhere"))],
  ]);
  const [notes, empty, absent] = await new Datasets(sources, log).facts();
  t.deepEqual(notes, { name: "notes", documents: 2, sizeBytes: 8, tokens: 8, problem: "" });
  t.regex(empty?.problem ?? "", /^no text in its folder: put \.txt files.*; 1 lines in 1 files hold none/);
  t.regex(absent?.problem ?? "", /does not exist; make it or correct --dataset/);
  for (const problem of [empty?.problem, absent?.problem]) t.notRegex(problem ?? "", /nowhere|shoal-data|x\.jsonl/);
  t.true(
    log.lines.some(({ fields }) => fields["dataset"] === "absent" && String(fields["folder"]).endsWith("nowhere")),
  );
  t.true(log.lines.some(({ fields }) => String(fields["where"]).startsWith("sub/b.jsonl:3:")));
});

test("counts follow the files", async (t) => {
  const path = await folder(t, { "a.txt": "one" });
  const datasets = new Datasets(new Map([["notes", folderSource(path)]]), new MemoryLog());
  t.is((await datasets.facts())[0]?.documents, 1);
  await writeFile(join(path, "b.txt"), "two");
  t.is((await datasets.facts())[0]?.documents, 2);
});

test("the held-out part is the end of each document, never trains, and does not move when documents are added", (t) => {
  const marked = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 8 });
  fc.assert(
    fc.property(marked, fc.double({ min: 0, max: 0.5, noNaN: true }), (lengths, fraction) => {
      // Every character of all documents differs from every other.
      let next = 100;
      const texts = lengths.map((length) => Array.from({ length }, () => String.fromCodePoint(next++)).join(""));
      const chars = tokenizer({ kind: "chars", chars: texts.join("") });
      const { train, heldOut } = splitDocuments(texts, chars, fraction);
      t.is(train.length + heldOut.length, next - 100);
      t.is(new Set([...train, ...heldOut]).size, next - 100);
      for (const [i, text] of texts.entries()) {
        const kept = chars.encode(text).slice(text.length - Math.floor(text.length * fraction));
        t.true(
          kept.every((token) => heldOut.includes(token)),
          `document ${i}`,
        );
      }
      const more = splitDocuments([...texts, ...texts], chars, fraction);
      t.deepEqual(more.heldOut.slice(0, heldOut.length), heldOut);
      t.deepEqual(more.train.slice(0, train.length), train);
    }),
  );
});

test("documents are parted by a separator", (t) => {
  const { train, heldOut } = splitDocuments(["abcd", "", "efgh"], bytes, 0.5);
  t.is(bytes.decode([...train]), "ab\nef");
  t.is(bytes.decode([...heldOut]), "cd\ngh");
});

test("training windows lie in the stream, targets follow by one, and the seed decides", (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 2, max: 60 }), fc.integer({ min: 1, max: 12 }), fc.nat(), (length, seqLen, seed) => {
      fc.pre(length > seqLen);
      const stream = Int32Array.from({ length }, (_, i) => i);
      const batch = sampleBatch(stream, 3, seqLen, createRng(seed));
      for (let i = 0; i < batch.tokens.length; i++) {
        t.is(batch.targets[i], (batch.tokens[i] ?? 0) + 1);
        t.true((batch.targets[i] ?? 0) < length);
      }
      t.deepEqual(sampleBatch(stream, 3, seqLen, createRng(seed)), batch);
    }),
  );
  const stream = Int32Array.from({ length: 10 }, (_, i) => i);
  const seen = new Set<number>();
  const rng = createRng(1);
  for (let i = 0; i < 200; i++) for (const token of sampleBatch(stream, 1, 4, rng).targets) seen.add(token);
  t.is(seen.size, 9, "every token but the first is a target sometimes");
});

test("evaluation predicts every token but the first exactly once", (t) => {
  fc.assert(
    fc.property(fc.nat(200), fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 4 }), (length, seqLen, size) => {
      const stream = Int32Array.from({ length }, (_, i) => i);
      const targets: number[] = [];
      for (const batch of evaluationBatches(stream, size, seqLen, Infinity)) {
        t.is(batch.tokens.length, size * seqLen);
        for (const [i, target] of batch.targets.entries()) {
          if (target === MASKED) continue;
          t.is(batch.tokens[i], target - 1);
          targets.push(target);
        }
      }
      t.deepEqual(targets, Array.from(stream.subarray(1)));
    }),
  );
});

test("a bounded evaluation takes evenly spaced batches", (t) => {
  const stream = Int32Array.from({ length: 101 }, (_, i) => i);
  const batches = [...evaluationBatches(stream, 1, 10, 4)];
  t.deepEqual(
    batches.map(({ tokens }) => tokens[0]),
    [0, 20, 50, 70],
  );
});

test("packed batches are the same windows, cut at the documents they hold", (t) => {
  const texts = fc.array(fc.string({ minLength: 1, maxLength: 9, unit: fc.constantFrom("a", "b", "c") }), {
    minLength: 3,
  });
  fc.assert(
    fc.property(texts, fc.integer({ min: 1, max: 5 }), fc.nat(), (documents, seqLen, seed) => {
      const { train, starts } = splitDocuments(documents, bytes, 0);
      if (train.length <= seqLen) return;
      const plain = sampleBatch(train, 3, seqLen, createRng(seed));
      const packed = samplePackedBatch(train, starts, 3, seqLen, createRng(seed));
      t.deepEqual(packed.tokens, plain.tokens);
      packed.targets.forEach((target, i) => {
        const segment = packed.segments?.[i] ?? -1;
        const inRow = i % seqLen !== seqLen - 1;
        // A separator ends its document: nothing is predicted from it, and the next token is of the next one.
        const ends = packed.tokens[i] === 10;
        t.is(target, ends ? -100 : (plain.targets[i] ?? 0));
        if (inRow) t.is(packed.segments?.[i + 1], ends ? segment + 1 : segment);
        if (i % seqLen === 0) t.is(segment, 0);
      });
    }),
  );
});
