import { isResourceName, type Violation } from "#common/domain/resources.js";
import { toHuggingFaceConfig } from "#common/graph/config.js";
import type { AdapterFiles } from "#common/graph/adapter.js";
import { importFolder } from "#common/graph/folder.js";
import type { FilePiece, ImportHeader, ImportRequest } from "#proto/shoal/v1/model_service.js";
import type { StoredFolder } from "./folder-template.js";
import {
  ADAPTER_CONFIG,
  ADAPTER_WEIGHTS,
  CONFIG,
  INDEX,
  isCompanion,
  isWeights,
  KNOWN_FILES,
  MAX_FILES,
  MAX_WEIGHT_BYTES,
  maxFileBytes,
  SHOAL_TOKENIZER,
  TOKENIZER,
  WEIGHTS,
} from "#common/domain/model-files.js";
import { type ImportedTokenizer, readTokenizer } from "./tokenizer-import.js";

/** Largest piece of a file in one message, bytes. */
export const MAX_IMPORT_PIECE_BYTES = 2 ** 20;
const KINDS = ["", "bytes", "chars", "huggingface"];

/** A model as it came in. */
export interface ImportedModel {
  readonly name: string;
  readonly family: string;
  readonly huggingFaceConfig: Record<string, unknown>;
  /** Flat fp32 in layout order. */
  readonly weights: Float32Array;
  readonly folder: StoredFolder;
  readonly tokenizer: ImportedTokenizer;
}

export type ImportVerdict = { ok: true; model: ImportedModel } | { ok: false; violations: Violation[] };

export type AdapterVerdict = { ok: true; files: AdapterFiles } | { ok: false; violations: Violation[] };

interface Incoming {
  readonly announced: number;
  readonly pieces: Uint8Array[];
  received: number;
}

const text = (value: unknown): string => (value === undefined ? "" : JSON.stringify(value).slice(0, 80));
/** What is wrong with a field, and as much of its value as tells it. */
export const violation = (field: string, value: unknown, description: string): Violation => ({
  field,
  value: typeof value === "string" ? value.slice(0, 80) : text(value),
  description,
});

/**
 * Takes an import's messages in order. Memory grows with the bytes that came, never with what was announced; the first
 * thing that is wrong ends it.
 */
export class ImportReader {
  private header: ImportHeader | undefined;
  private readonly files = new Map<string, Incoming>();

  /** Takes one message; says what is wrong with it, if anything is. */
  accept({ part }: ImportRequest): Violation | undefined {
    if (part === undefined) return violation("part", undefined, "is missing: send a header, then pieces");
    if (part.$case === "header") return this.acceptHeader(part.value);
    if (this.header === undefined) return violation("header", undefined, "must be the first message");
    return this.acceptPiece(part.value);
  }

  /** Name of the model that the header asks for; empty before the header. */
  get name(): string {
    return this.header?.name ?? "";
  }

  /** Name of the model to which what comes in is an adapter; empty for a whole model. */
  get base(): string {
    return this.header?.base ?? "";
  }

  private acceptHeader(header: ImportHeader): Violation | undefined {
    if (this.header !== undefined) return violation("header", header.name, "came twice: send it once, first");
    if (!isResourceName(header.name)) {
      return violation("header.name", header.name, "must be 1 to 63 lower-case letters, digits and inner '-'");
    }
    if (!KINDS.includes(header.tokenizerKind)) {
      return violation("header.tokenizer_kind", header.tokenizerKind, `must be ${KINDS.slice(1).join(", ")} or empty`);
    }
    if (header.base !== "" && !isResourceName(header.base)) {
      return violation("header.base", header.base, "must be the name of a stored model");
    }
    if (header.base !== "" && header.tokenizerKind !== "") {
      return violation("header.tokenizer_kind", header.tokenizerKind, "is the base's for an adapter: leave it empty");
    }
    this.header = header;
    return undefined;
  }

  private acceptPiece({ fileName, fileSizeBytes, data }: FilePiece): Violation | undefined {
    const max = maxFileBytes(fileName);
    if (max === undefined) return violation("piece.file_name", fileName, `must be one of ${KNOWN_FILES}`);
    const isAdapter = fileName === ADAPTER_CONFIG || fileName === ADAPTER_WEIGHTS;
    if (this.base === "" && fileName === ADAPTER_CONFIG) {
      return violation(
        "header.base",
        "",
        `is needed beside ${fileName}: name the stored model that the adapter is for`,
      );
    }
    if (this.base !== "" && !isAdapter) {
      const wanted = `${ADAPTER_CONFIG} or ${ADAPTER_WEIGHTS}`;
      return violation("piece.file_name", fileName, `must be ${wanted} where header.base names a model`);
    }
    if (fileSizeBytes <= 0 || fileSizeBytes > max) {
      return violation("piece.file_size_bytes", fileSizeBytes, `must be from 1 to ${max} for ${fileName}`);
    }
    if (data.length > MAX_IMPORT_PIECE_BYTES) {
      return violation("piece.data", data.length, `must be at most ${MAX_IMPORT_PIECE_BYTES} bytes: send more pieces`);
    }
    const file = this.files.get(fileName) ?? { announced: fileSizeBytes, pieces: [], received: 0 };
    if (file.announced !== fileSizeBytes) {
      return violation("piece.file_size_bytes", fileSizeBytes, `was ${file.announced} in an earlier piece`);
    }
    if (file.received + data.length > file.announced) {
      const description = `brings ${fileName} to ${file.received + data.length} bytes, announced were ${file.announced}`;
      return violation("piece.data", data.length, description);
    }
    file.pieces.push(data);
    file.received += data.length;
    this.files.set(fileName, file);
    return this.checkTotals(fileName);
  }

  private checkTotals(fileName: string): Violation | undefined {
    if (this.files.size > MAX_FILES) {
      return violation("piece.file_name", fileName, `is one file more than the ${MAX_FILES} a folder may have`);
    }
    const weights = [...this.files].filter(([name]) => isWeights(name));
    const total = weights.reduce((sum, [, { received }]) => sum + received, 0);
    if (total <= MAX_WEIGHT_BYTES) return undefined;
    return violation("piece.data", total, `brings all weights above the ${MAX_WEIGHT_BYTES} bytes a model may have`);
  }

  /** Ends the import: all files complete, weights and tokenizer fit the config. */
  finish(): ImportVerdict {
    const { header } = this;
    if (header === undefined) {
      return { ok: false, violations: [violation("header", undefined, "is missing: it must be the first message")] };
    }
    const has = (name: string): boolean => this.files.has(name);
    const incomplete = this.incompleteFiles([
      ...(has(CONFIG) ? [] : [CONFIG]),
      ...(has(WEIGHTS) || has(INDEX) ? [] : [WEIGHTS]),
    ]);
    if (incomplete.length > 0) return { ok: false, violations: incomplete };
    const companions = this.take(isCompanion);
    const json = this.take((name) => name === TOKENIZER).get(TOKENIZER);
    const imported = importFolder(this.take(() => true));
    if (!imported.ok) {
      const found = imported.violations.map(({ field, value, description }) => violation(field, value, description));
      return { ok: false, violations: found };
    }
    const { config, weights, template } = imported;
    const described = companions.get(SHOAL_TOKENIZER);
    const tokenizer = readTokenizer(header.tokenizerKind, { json, described }, config.vocabSize);
    if (!tokenizer.ok) {
      const { field, value, description } = tokenizer.violation;
      return { ok: false, violations: [violation(field, value, description)] };
    }
    const { family } = config;
    const { name } = header;
    const folder = { template, companions };
    const huggingFaceConfig = toHuggingFaceConfig(config);
    return { ok: true, model: { name, family, huggingFaceConfig, weights, folder, tokenizer: tokenizer.tokenizer } };
  }

  /** Ends the import of an adapter: its two files, complete. */
  finishAdapter(): AdapterVerdict {
    const incomplete = this.incompleteFiles([ADAPTER_CONFIG, ADAPTER_WEIGHTS].filter((name) => !this.files.has(name)));
    if (incomplete.length > 0) return { ok: false, violations: incomplete };
    const files = this.take(() => true);
    const bytesOf = (name: string): Uint8Array => files.get(name) ?? new Uint8Array();
    const adapter = {
      [ADAPTER_CONFIG]: bytesOf(ADAPTER_CONFIG),
      [ADAPTER_WEIGHTS]: bytesOf(ADAPTER_WEIGHTS),
    } as const;
    return { ok: true, files: adapter };
  }

  private incompleteFiles(missing: readonly string[]): Violation[] {
    const violations = missing.map((name) => violation(name, undefined, "is missing: send it in pieces"));
    for (const [name, { announced, received }] of this.files) {
      if (received === announced) continue;
      violations.push(violation(name, received, `ended after ${received} of ${announced} announced bytes`));
    }
    return violations;
  }

  /** The whole files of these names, of which nothing is kept here. */
  private take(wanted: (name: string) => boolean): Map<string, Uint8Array> {
    const taken = new Map<string, Uint8Array>();
    for (const [name, { pieces, received }] of this.files) {
      if (!wanted(name)) continue;
      this.files.delete(name);
      const [first] = pieces;
      taken.set(name, pieces.length === 1 && first !== undefined ? first : Buffer.concat(pieces, received));
    }
    return taken;
  }
}
