import { codeOf, messageOf } from "#common/adapters/coded-error.js";
import type { Log } from "#common/ports/log.js";
import { DatasetFacts } from "#proto/shoal/v1/device.js";
import type { TokenizerSpec } from "#proto/shoal/v1/job.js";
import type { Permit } from "../guard.js";
import { describeSkipped, readDocuments } from "./documents.js";
import { fingerprint, type DataSource } from "./source.js";
import { splitDocuments, type Shard } from "./split.js";
import { openTokenizer } from "./tokenizers.js";

/** How a round wants its data. */
export interface ReadOptions {
  readonly tokenizer: TokenizerSpec | undefined;
  /** tokenizer.json, for kind "huggingface". */
  readonly tokenizerBlob: Uint8Array | undefined;
  readonly heldOutFraction: number;
}

export type ReadShard = { ok: true; shard: Shard } | { ok: false; problem: string };

/** The text on this device, by dataset. */
export class Datasets {
  readonly #sources: ReadonlyMap<string, DataSource>;
  readonly #log: Log;
  /** Counts of folders that have not changed since. */
  readonly #facts = new Map<string, { files: string; facts: DatasetFacts }>();
  /** The shard of the last round: most rounds want the same one again. */
  #last: { key: string; shard: Shard } | undefined;

  constructor(sources: ReadonlyMap<string, DataSource>, log: Log) {
    this.#sources = sources;
    this.#log = log;
  }

  get names(): string[] {
    return [...this.#sources.keys()];
  }

  /** What the device says of its datasets: counts, never text. Its owner offered them, so no assignment is needed. */
  async facts(): Promise<DatasetFacts[]> {
    const facts: DatasetFacts[] = [];
    for (const [name, source] of this.#sources) facts.push(await this.#factsOf(name, source));
    return facts;
  }

  async #factsOf(name: string, source: DataSource): Promise<DatasetFacts> {
    try {
      const files = fingerprint(await source.list());
      const known = this.#facts.get(name);
      if (known?.files === files) return known.facts;
      const facts = await this.#count(name, source);
      this.#facts.set(name, { files, facts });
      return facts;
    } catch (error) {
      return DatasetFacts.fromPartial({ name, problem: readProblem(source.folder, error) });
    }
  }

  async #count(name: string, source: DataSource): Promise<DatasetFacts> {
    const { texts, skipped } = await readDocuments(source);
    for (const lines of skipped) {
      this.#log.warn("lines of a data file are left out", {
        dataset: name,
        lines: lines.count,
        where: describeSkipped(lines),
      });
    }
    const sizeBytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
    const problem = texts.length === 0 ? emptyProblem(source.folder, skipped.map(describeSkipped)) : "";
    return DatasetFacts.fromPartial({ name, documents: texts.length, sizeBytes, tokens: sizeBytes, problem });
  }

  /** Tokens of a permitted dataset. Files are opened only here and, to count them, in `facts`. */
  async read(permit: Permit, options: ReadOptions): Promise<ReadShard> {
    const source = this.#sources.get(permit.dataset);
    if (source === undefined) return { ok: false, problem: `no dataset "${permit.dataset}" on this device` };
    const opened = openTokenizer(options.tokenizer, options.tokenizerBlob);
    if (!opened.ok) return opened;
    try {
      const { tokenizer, heldOutFraction } = options;
      const files = fingerprint(await source.list());
      const key = JSON.stringify([permit.dataset, files, tokenizer, heldOutFraction]);
      if (this.#last?.key === key) return { ok: true, shard: this.#last.shard };
      this.#last = undefined;
      const { texts, skipped } = await readDocuments(source);
      if (texts.length === 0) return { ok: false, problem: emptyProblem(source.folder, skipped.map(describeSkipped)) };
      const shard = splitDocuments(texts, opened.tokenizer, heldOutFraction);
      this.#last = { key, shard };
      return { ok: true, shard };
    } catch (error) {
      return { ok: false, problem: readProblem(source.folder, error) };
    }
  }
}

function emptyProblem(folder: string, skipped: readonly string[]): string {
  const why = skipped.length > 0 ? `; ${skipped.join("; ")}` : "";
  return `no text in ${folder}: put .txt files or .jsonl files of {"text": ...} lines there${why}`;
}

function readProblem(folder: string, error: unknown): string {
  const code = codeOf(error);
  if (code === "ENOENT") return `the folder ${folder} does not exist; make it or correct --dataset`;
  if (code === "EACCES") return `the folder ${folder} may not be read by this user; change its owner or mode`;
  return `the folder ${folder} cannot be read: ${messageOf(error)}`;
}
