import { isResourceName, type Violation } from "#common/domain/resources.js";
import { importCheckpoint } from "#common/graph/checkpoint.js";
import { type ModelConfig, toHuggingFaceConfig } from "#common/graph/config.js";
import type { FilePiece, ImportHeader, ImportRequest } from "#proto/shoal/v1/model_service.js";

const FILES = ["config.json", "model.safetensors", "tokenizer.json"] as const;
type FileName = (typeof FILES)[number];

const MIB = 2 ** 20;
/** Largest files that are taken, bytes. Weights: 500 M parameters in fp32 with room for a tied head and the header. */
export const MAX_FILE_BYTES: Readonly<Record<FileName, number>> = {
  "config.json": MIB,
  "model.safetensors": 2560 * MIB,
  "tokenizer.json": 64 * MIB,
};
/** Largest piece of a file in one message, bytes. */
export const MAX_IMPORT_PIECE_BYTES = MIB;
const BYTE_TOKENS = 256;
const KINDS = ["", "bytes", "huggingface"];

/** A model as it came in. */
export interface ImportedModel {
  readonly name: string;
  readonly config: ModelConfig;
  readonly huggingFaceConfig: Record<string, unknown>;
  /** Flat fp32 in layout order. */
  readonly weights: Float32Array;
  readonly tokenizer: { readonly kind: "bytes" } | { readonly kind: "huggingface"; readonly json: Uint8Array };
}

export type ImportVerdict = { ok: true; model: ImportedModel } | { ok: false; violations: Violation[] };

interface Incoming {
  readonly announced: number;
  readonly pieces: Uint8Array[];
  received: number;
}

const isFileName = (name: string): name is FileName => (FILES as readonly string[]).includes(name);
const text = (value: unknown): string => (value === undefined ? "" : JSON.stringify(value).slice(0, 80));
const violation = (field: string, value: unknown, description: string): Violation => ({
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
  private readonly files = new Map<FileName, Incoming>();

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

  private acceptHeader(header: ImportHeader): Violation | undefined {
    if (this.header !== undefined) return violation("header", header.name, "came twice: send it once, first");
    if (!isResourceName(header.name)) {
      return violation("header.name", header.name, "must be 1 to 63 lower-case letters, digits and inner '-'");
    }
    if (!KINDS.includes(header.tokenizerKind)) {
      return violation("header.tokenizer_kind", header.tokenizerKind, 'must be "bytes", "huggingface" or empty');
    }
    this.header = header;
    return undefined;
  }

  private acceptPiece(piece: FilePiece): Violation | undefined {
    const { fileName, fileSizeBytes, data } = piece;
    if (!isFileName(fileName)) {
      return violation("piece.file_name", fileName, `must be one of ${FILES.join(", ")}`);
    }
    const max = MAX_FILE_BYTES[fileName];
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
    return undefined;
  }

  /** Ends the import: all files complete, weights and tokenizer fit the config. */
  finish(): ImportVerdict {
    if (this.header === undefined) {
      return { ok: false, violations: [violation("header", undefined, "is missing: it must be the first message")] };
    }
    const violations = this.incompleteFiles(this.header);
    const config = this.take("config.json");
    const safetensors = this.take("model.safetensors");
    if (violations.length > 0 || config === undefined || safetensors === undefined) return { ok: false, violations };
    const checkpoint = importCheckpoint(config, safetensors);
    if (!checkpoint.ok) {
      const found = checkpoint.violations.map(({ field, value, description }) => violation(field, value, description));
      return { ok: false, violations: found };
    }
    const json = this.take("tokenizer.json");
    const wrong = checkTokenizer(json, checkpoint.config.vocabSize);
    if (wrong !== undefined) return { ok: false, violations: [wrong] };
    return {
      ok: true,
      model: {
        name: this.header.name,
        config: checkpoint.config,
        huggingFaceConfig: toHuggingFaceConfig(checkpoint.config),
        weights: checkpoint.weights,
        tokenizer: json === undefined ? { kind: "bytes" } : { kind: "huggingface", json },
      },
    };
  }

  private incompleteFiles({ tokenizerKind }: ImportHeader): Violation[] {
    const has = (name: FileName): boolean => this.files.has(name);
    const violations = (["config.json", "model.safetensors"] as const)
      .filter((name) => !has(name))
      .map((name) => violation(name, undefined, "is missing: send it in pieces"));
    for (const [name, { announced, received }] of this.files) {
      if (received === announced) continue;
      violations.push(violation(name, received, `ended after ${received} of ${announced} announced bytes`));
    }
    if (tokenizerKind === "huggingface" && !has("tokenizer.json")) {
      violations.push(violation("tokenizer.json", undefined, 'is missing: tokenizer_kind is "huggingface"'));
    }
    if (tokenizerKind === "bytes" && has("tokenizer.json")) {
      violations.push(violation("tokenizer.json", undefined, 'is not used by tokenizer_kind "bytes": leave it out'));
    }
    return violations;
  }

  /** The whole file, of which nothing is kept. */
  private take(name: FileName): Uint8Array | undefined {
    const file = this.files.get(name);
    if (file === undefined) return undefined;
    this.files.delete(name);
    return file.pieces.length === 1 ? file.pieces[0] : Buffer.concat(file.pieces, file.received);
  }
}

function parse(json: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json)) as unknown;
  } catch {
    return undefined;
  }
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The vocabulary must fit the token table: a token beyond it would read another's weights, or none. */
function checkTokenizer(json: Uint8Array | undefined, vocabSize: number): Violation | undefined {
  if (json === undefined) {
    if (vocabSize >= BYTE_TOKENS) return undefined;
    const description = `is below the ${BYTE_TOKENS} tokens of tokenizer "bytes": send tokenizer.json`;
    return violation("vocab_size", vocabSize, description);
  }
  const tokenizer = parse(json);
  const model = isRecord(tokenizer) ? tokenizer["model"] : undefined;
  if (!isRecord(tokenizer) || !isRecord(model)) {
    return violation("tokenizer.json", undefined, "is no tokenizer of Hugging Face's tokenizers library");
  }
  const listed = model["vocab"];
  const ids = isRecord(listed) ? Object.values(listed) : Array.isArray(listed) ? listed.map((_, id) => id) : [];
  const added = Array.isArray(tokenizer["added_tokens"]) ? tokenizer["added_tokens"] : [];
  const all = [...ids, ...added.map((token: unknown) => (isRecord(token) ? token["id"] : undefined))];
  const bad = all.find((id) => typeof id !== "number" || !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (all.length === 0) return violation("tokenizer.json", undefined, "has no vocabulary");
  if (bad === undefined) return undefined;
  return violation("tokenizer.json", bad, `has a token outside the model's vocabulary of ${vocabSize}`);
}
