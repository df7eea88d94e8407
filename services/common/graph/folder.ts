import { parseModelConfig, type ModelConfig, type Violation } from "./config.js";
import { shownName, shownValue } from "./families/family.js";
import { decodeWeights, encodeWeights, isWeightType } from "./dtypes.js";
import { familyOf } from "./families/table.js";
import { parameterLayout, type TensorPlace } from "./layout.js";
import { readJson } from "./json.js";
import { joinSafetensors, readSafetensors, type SafetensorsFile, type TensorEntry } from "./safetensors.js";

/** A Hugging Face folder's files by name: config.json, and model.safetensors or an index with its shards. */
export type FolderFiles = ReadonlyMap<string, Uint8Array>;

export const WEIGHTS_FILE = "model.safetensors";
const INDEX_FILE = "model.safetensors.index.json";

/**
 * What of an imported folder its flat float32 vector does not hold: types, order, names, metadata, shards, tensors
 * without weights of their own. With it, untouched weights are exported as the very bytes that were imported.
 */
export interface FolderTemplate {
  readonly config: Uint8Array;
  readonly index: Uint8Array | undefined;
  readonly files: readonly {
    readonly name: string;
    /** The safetensors header as it stood. */
    readonly header: Uint8Array;
    /** Bytes of tensors that have no place in the vector and copy none that has. */
    readonly kept: ReadonlyMap<string, Uint8Array>;
  }[];
}

export type ImportedFolder =
  | {
      readonly ok: true;
      readonly config: ModelConfig;
      /** Flat [total] in the order of `parameterLayout`. */
      readonly weights: Float32Array;
      readonly template: FolderTemplate;
    }
  | { readonly ok: false; readonly violations: readonly Violation[] };

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** config.json takes a few KiB, the index of a large model a few hundred. */
const MAX_JSON_BYTES = 16 * 1024 * 1024;
const MAX_VIOLATIONS = 100;
const MAX_SHARDS = 1000;
const SHARD_NAME = /^[\w-]+(\.[\w-]+)*\.safetensors$/;

/** The files that an index names, in order of first mention; names that are paths are refused. */
function shardsOf(
  index: Uint8Array,
): { ok: true; shards: string[]; fileOf: ReadonlyMap<string, string> } | { ok: false; violation: Violation } {
  const read = readJson(index, MAX_JSON_BYTES);
  const json = read.ok ? read.value : undefined;
  const map = isRecord(json) ? json["weight_map"] : undefined;
  if (!isRecord(map)) {
    const description = read.ok ? "must be a JSON object with a weight_map" : read.reason;
    return { ok: false, violation: { field: INDEX_FILE, value: undefined, description } };
  }
  const fileOf = new Map<string, string>();
  for (const [tensor, file] of Object.entries(map)) {
    if (typeof file !== "string" || !SHARD_NAME.test(file)) {
      const description = `${shownName(tensor)} must name a .safetensors file beside the index`;
      return { ok: false, violation: { field: `${INDEX_FILE}.weight_map`, value: shownValue(file), description } };
    }
    fileOf.set(tensor, file);
  }
  const shards = [...new Set(fileOf.values())];
  if (shards.length > MAX_SHARDS) {
    const description = `must name at most ${MAX_SHARDS} files`;
    return { ok: false, violation: { field: `${INDEX_FILE}.weight_map`, value: shards.length, description } };
  }
  return { ok: true, shards, fileOf };
}

interface OpenFile extends SafetensorsFile {
  readonly name: string;
}

/** Opens the one file or all shards, and holds them against the index. */
function openFiles(files: FolderFiles): { opened: OpenFile[]; violations: Violation[] } {
  const violations: Violation[] = [];
  const index = files.get(INDEX_FILE);
  // A folder with both is read as transformers reads it: the whole file goes first.
  const sharded = index === undefined || files.has(WEIGHTS_FILE) ? undefined : shardsOf(index);
  if (sharded?.ok === false) return { opened: [], violations: [sharded.violation] };
  const opened: OpenFile[] = [];
  for (const name of sharded?.shards ?? [WEIGHTS_FILE]) {
    const bytes = files.get(name);
    const read = bytes === undefined ? { ok: false as const, reason: "is missing" } : readSafetensors(bytes);
    if (read.ok) opened.push({ name, ...read.file });
    else violations.push({ field: name, value: undefined, description: read.reason });
  }
  for (const { name: file, entries } of sharded === undefined ? [] : opened) {
    for (const { name, shape } of entries) {
      if (sharded?.fileOf.get(name) === file) continue;
      const description = `is in ${file}, which is not where the index has it`;
      violations.push({ field: shownName(name), value: shape, description });
    }
  }
  return { opened, violations };
}

/** Where a file's tensor belongs: a place in the vector, a copy of one, or bytes of its own. */
type Role = { place: TensorPlace; copy: boolean } | "kept" | undefined;

/** Knows full names and those without the family's prefix. */
function roles(config: ModelConfig): (name: string) => Role {
  const family = familyOf(config);
  const places = new Map(parameterLayout(config).tensors.map((place) => [place.name, place]));
  return (name) => {
    const original = family.tiedTo(config, name);
    const place = places.get(original ?? name) ?? places.get(`${family.prefix}${name}`);
    if (place !== undefined) return { place, copy: original !== undefined };
    return family.isRedundant(name) ? "kept" : undefined;
  };
}

const wantedShape = ({ shape }: TensorPlace): string => `[${shape.join(",")}]`;

/** Position of the first value that is not finite, or -1. A loop: a call for each of a model's values takes seconds. */
function firstNonFinite(values: Float32Array): number {
  for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i])) return i;
  return -1;
}

/** One tensor's values, or what is wrong with it. */
function decodeEntry({ name: file, body }: OpenFile, entry: TensorEntry, place: TensorPlace): Float32Array | Violation {
  const { name, dtype, shape, begin, end } = entry;
  const wrong = (value: unknown, problem: string): Violation => {
    return { field: name, value, description: `${problem}, in ${file}` };
  };
  if (!isWeightType(dtype)) return wrong(dtype, "must be F32, F16 or BF16");
  if (shape.join() !== place.shape.join()) return wrong(shape, `must have the shape ${wantedShape(place)}`);
  const values = decodeWeights(dtype, body.subarray(begin, end));
  const bad = firstNonFinite(values);
  return bad < 0 ? values : wrong(values[bad], `holds a value that is not finite (${values[bad]}), at position ${bad}`);
}

const sameBits = (a: Float32Array, b: Float32Array): boolean =>
  a.length === b.length && a.every((x, i) => Object.is(x, b[i]));

/** Collects a folder's tensors; the vector is made last, for a config may claim a size that its files do not have. */
class TensorCollector {
  readonly violations: Violation[] = [];
  readonly #found = new Map<string, Float32Array>();
  readonly #copies: { name: string; values: Float32Array; place: TensorPlace }[] = [];
  readonly #role: (name: string) => Role;

  constructor(config: ModelConfig) {
    this.#role = roles(config);
  }

  /** Takes one file; returns the bytes that the vector has no place for. */
  take(file: OpenFile): Map<string, Uint8Array> {
    const kept = new Map<string, Uint8Array>();
    for (const entry of file.entries) {
      const role = this.#role(entry.name);
      if (role === "kept") kept.set(entry.name, file.body.slice(entry.begin, entry.end));
      else if (role === undefined) this.#refuse(entry, "is not a tensor of this model");
      else this.#place(file, entry, role);
    }
    return kept;
  }

  #refuse({ name, shape }: TensorEntry, description: string): void {
    this.violations.push({ field: shownName(name), value: shape, description });
  }

  #place(file: OpenFile, entry: TensorEntry, { place, copy }: { place: TensorPlace; copy: boolean }): void {
    if (!copy && this.#found.has(place.name)) {
      this.#refuse(entry, "is there twice, with and without its prefix");
      return;
    }
    const values = decodeEntry(file, entry, place);
    if (!(values instanceof Float32Array)) this.violations.push(values);
    else if (copy) this.#copies.push({ name: entry.name, values, place });
    else this.#found.set(place.name, values);
  }

  /** The flat vector, or undefined where something is wrong. A tied tensor may be there under its other name only. */
  finish(config: ModelConfig): Float32Array | undefined {
    for (const { name, values, place } of this.#copies) {
      const original = this.#found.get(place.name);
      if (original === undefined) this.#found.set(place.name, values);
      else if (!sameBits(values, original)) {
        const description = `must equal ${place.name}: the head is tied`;
        this.violations.push({ field: name, value: place.shape, description });
      }
    }
    const layout = parameterLayout(config);
    const named = new Set(this.violations.map(({ field }) => field));
    for (const place of layout.tensors) {
      if (this.#found.has(place.name) || named.has(place.name)) continue;
      const description = `is missing: a tensor of shape ${wantedShape(place)} is needed`;
      this.violations.push({ field: place.name, value: undefined, description });
    }
    if (this.violations.length > 0) return undefined;
    const weights = new Float32Array(layout.total);
    for (const place of layout.tensors) weights.set(this.#found.get(place.name) ?? [], place.offset);
    return weights;
  }
}

/**
 * Reads a Hugging Face folder: config.json and F32, F16 or BF16 tensors in one file or in shards, named with or without
 * the family's prefix. A tensor that is missing, foreign, of another shape or not finite is named in the violations.
 */
export function importFolder(files: FolderFiles): ImportedFolder {
  const imported = readFolder(files);
  // A file may be wrong in as many places as it has bytes.
  return imported.ok ? imported : { ok: false, violations: imported.violations.slice(0, MAX_VIOLATIONS) };
}

function readFolder(files: FolderFiles): ImportedFolder {
  const configBytes = files.get("config.json");
  const read =
    configBytes === undefined ? ({ ok: false, reason: "is missing" } as const) : readJson(configBytes, MAX_JSON_BYTES);
  if (configBytes === undefined || !read.ok) {
    const description = read.ok ? "" : read.reason;
    return { ok: false, violations: [{ field: "config.json", value: undefined, description }] };
  }
  const parsed = parseModelConfig(read.value);
  if (!parsed.ok) return parsed;
  const { opened, violations } = openFiles(files);
  if (violations.length > 0) return { ok: false, violations };
  const collector = new TensorCollector(parsed.config);
  const kept = opened.map((file) => ({ name: file.name, header: file.header.slice(), kept: collector.take(file) }));
  const weights = collector.finish(parsed.config);
  if (weights === undefined) return { ok: false, violations: collector.violations };
  const index = files.has(WEIGHTS_FILE) ? undefined : files.get(INDEX_FILE);
  return { ok: true, config: parsed.config, weights, template: { config: configBytes, index, files: kept } };
}

/**
 * Writes weights in the form of the folder they were imported from, in its types: trained values are rounded to them.
 * Throws a RangeError for weights of another model.
 */
export function exportFolder(
  config: ModelConfig,
  weights: Float32Array,
  template: FolderTemplate,
): Map<string, Uint8Array> {
  const layout = parameterLayout(config);
  if (weights.length !== layout.total) throw new RangeError(`${weights.length} weights for ${layout.total} parameters`);
  const roleOf = roles(config);
  const files = new Map([["config.json", template.config]]);
  if (template.index !== undefined) files.set(INDEX_FILE, template.index);
  for (const { name: file, header, kept } of template.files) {
    const parts: Uint8Array[] = [];
    for (const { name, dtype } of entriesOf(header)) {
      const role = roleOf(name);
      const bytes = kept.get(name);
      if (bytes !== undefined) parts.push(bytes);
      else if (role === undefined || role === "kept" || !isWeightType(dtype)) throw new RangeError(`no tensor ${name}`);
      else parts.push(encodeWeights(dtype, weights.subarray(role.place.offset, role.place.offset + role.place.size)));
    }
    files.set(file, joinSafetensors(header, parts));
  }
  return files;
}

/** Name and type of a header's tensors in the order of their bytes. */
function entriesOf(header: Uint8Array): { name: string; dtype: string }[] {
  const json = JSON.parse(new TextDecoder().decode(header)) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >;
  return Object.entries(json)
    .filter(([name]) => name !== "__metadata__")
    .sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0] || a.data_offsets[1] - b.data_offsets[1])
    .map(([name, { dtype }]) => ({ name, dtype }));
}
