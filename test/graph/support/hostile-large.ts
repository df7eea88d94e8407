import { argv, resourceUsage, stdout } from "node:process";
import { openTokenizer } from "#agent/data/tokenizers.js";
import { parseModelConfig } from "#common/graph/config.js";
import { encodeWeights } from "#common/graph/dtypes.js";
import { importFolder } from "#common/graph/folder.js";
import { parameterLayout } from "#common/graph/layout.js";
import { parseSafetensors } from "#common/graph/safetensors.js";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { safetensors, wholeTokenizer } from "./hostile-files.js";

/** How much memory a large file takes that is made to take much; one line of JSON. */
export interface LargeRun {
  readonly ok: boolean;
  readonly report: string;
  readonly fileBytes: number;
  readonly grownBytes: number;
}

const MIB = 1024 * 1024;
const ascii = (text: string): Uint8Array => new TextEncoder().encode(text);
const filled = (count: number, element: (i: number) => string): Uint8Array =>
  ascii(`{"x":[${Array.from({ length: count }, (_, i) => element(i)).join(",")}]}`);

interface Attempt {
  readonly file: Uint8Array;
  run(): { ok: boolean; report: string };
}

const asSafetensors = (file: Uint8Array): Attempt => ({
  file,
  run: () => {
    const parsed = parseSafetensors(file);
    return { ok: parsed.ok, report: parsed.ok ? "" : parsed.reason };
  },
});

const asFolder = (config: object, file: Uint8Array): Attempt => ({
  file,
  run: () => {
    const files = new Map([
      ["config.json", ascii(JSON.stringify(config))],
      ["model.safetensors", file],
    ]);
    const imported = importFolder(files);
    return { ok: imported.ok, report: imported.ok ? "" : JSON.stringify(imported.violations.slice(0, 2)) };
  },
});

const asTokenizer = (file: Uint8Array): Attempt => ({
  file,
  run: () => {
    const opened = openTokenizer(TokenizerSpec.fromPartial({ kind: "huggingface" }), file);
    return { ok: opened.ok, report: opened.ok ? "" : opened.problem };
  },
});

const gpt2 = {
  ...{ model_type: "gpt2", vocab_size: 1000, n_positions: 128, n_layer: 2, n_head: 4, n_embd: 512 },
};

function wholeModel(): Uint8Array {
  const parsed = parseModelConfig(gpt2);
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  const parts = parameterLayout(parsed.config).tensors;
  let position = 0;
  const header = Object.fromEntries(
    parts.map(({ name, shape, size }) => {
      position += 2 * size;
      return [name, { dtype: "F16", shape, data_offsets: [position - 2 * size, position] }];
    }),
  );
  return safetensors(
    header,
    Buffer.concat(parts.map(({ size }) => encodeWeights("F16", new Float32Array(size).fill(1)))),
  );
}

const vocabularyOf = (count: number, id: (i: number) => number): Uint8Array => {
  const vocab = Object.fromEntries(Array.from({ length: count }, (_, i) => [`t${i}`, id(i)]));
  return ascii(JSON.stringify({ ...wholeTokenizer(), model: { type: "BPE", merges: [], vocab } }));
};

export const largeFiles: Readonly<Record<string, () => Attempt>> = {
  "a header of empty lists": () =>
    asSafetensors(
      safetensors(
        filled(2 * MIB, () => "[]"),
        new Uint8Array(),
      ),
    ),
  "a header of lists inside lists": () =>
    asSafetensors(safetensors(ascii("[".repeat(3 * MIB) + "]".repeat(3 * MIB)), new Uint8Array())),
  "a header beyond what is read": () =>
    asSafetensors(
      safetensors(
        filled(8 * MIB, () => "{}"),
        new Uint8Array(),
      ),
    ),
  "tensors without elements": () => {
    const entry = { dtype: "F32", shape: [0, 2 ** 53 - 1], data_offsets: [0, 0] };
    return asFolder(
      gpt2,
      safetensors(Object.fromEntries(Array.from({ length: 70_000 }, (_, i) => [`t${i}`, entry])), new Uint8Array()),
    );
  },
  "a config of billions of parameters": () => asFolder({ ...gpt2, n_embd: 2048, n_layer: 8 }, wholeModel()),
  "half precision throughout": () => asFolder(gpt2, wholeModel()),
  "a vocabulary of small ids": () => asTokenizer(vocabularyOf(100_000, (i) => i)),
  "a vocabulary of huge ids": () => asTokenizer(vocabularyOf(100_000, (i) => 2 ** 40 + i)),
  "a tokenizer of empty lists": () => asTokenizer(filled(2 * MIB, () => "[]")),
};

function main(name: string): LargeRun {
  const make = largeFiles[name];
  if (make === undefined) throw new Error(`no file ${name}`);
  const attempt = make();
  // What making the file took is not the import's: it is counted from here.
  const before = resourceUsage().maxRSS;
  const { ok, report } = attempt.run();
  return { ok, report, fileBytes: attempt.file.length, grownBytes: (resourceUsage().maxRSS - before) * 1024 };
}

if (argv[1]?.endsWith("hostile-large.js") === true) stdout.write(JSON.stringify(main(argv[2] ?? "")));
