import { codeOf, messageOf } from "#common/adapters/coded-error.js";
import type { Log } from "#common/ports/log.js";
import { DatasetFacts } from "#proto/shoal/v1/device.js";
import type { TokenizerSpec } from "#proto/shoal/v1/job.js";
import type { Permit } from "../guard.js";
import { describeSkipped, readDocuments, type SkippedLines } from "./documents.js";
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

  /** What was last logged of a dataset that cannot be read. */
  readonly #unreadable = new Map<string, string>();

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
      return DatasetFacts.fromPartial({ name, problem: this.#readProblem(name, source, error) });
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
    if (texts.length === 0) this.#log.warn("a dataset holds no text", { dataset: name, folder: source.folder });
    const sizeBytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
    const problem = texts.length === 0 ? emptyProblem(skipped) : "";
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
      if (texts.length === 0) return { ok: false, problem: emptyProblem(skipped) };
      const shard = splitDocuments(texts, opened.tokenizer, heldOutFraction);
      this.#last = { key, shard };
      return { ok: true, shard };
    } catch (error) {
      return { ok: false, problem: this.#readProblem(permit.dataset, source, error) };
    }
  }

  /** What the fleet is told, without names of this device's folders or files; those go into the local log, once. */
  #readProblem(dataset: string, { folder }: DataSource, error: unknown): string {
    const code = codeOf(error) ?? "";
    const detail = messageOf(error);
    if (this.#unreadable.get(dataset) !== detail) {
      this.#log.error("a dataset cannot be read", { dataset, folder, code, detail });
      this.#unreadable.set(dataset, detail);
    }
    if (code === "ENOENT") return "its folder does not exist; make it or correct --dataset";
    if (code === "EACCES") return "its folder may not be read by the agent's user; change its owner or mode";
    return "its folder cannot be read; see the agent's log";
  }
}

/** Counts only: file names stay on the device, in its log. */
function emptyProblem(skipped: readonly SkippedLines[]): string {
  const lines = skipped.reduce((sum, { count }) => sum + count, 0);
  const why = lines > 0 ? `; ${lines} lines in ${skipped.length} files hold none, see the agent's log` : "";
  return `no text in its folder: put .txt files or .jsonl files of {"text": ...} lines there${why}`;
}
