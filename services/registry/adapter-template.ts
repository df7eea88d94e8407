import type { AdapterTemplate } from "#common/graph/adapter.js";

const MAGIC = "shoal-adapter-1";

/** Lengths of the parts that follow, in their order, and the tensors. */
interface Contents {
  readonly magic: string;
  readonly config: number;
  readonly header: number;
  readonly tensors: AdapterTemplate["tensors"];
}

/** One line of JSON that tells the parts, then their bytes one after the other. */
export function encodeAdapter({ config, header, tensors }: AdapterTemplate): Uint8Array {
  const kept = tensors.map(({ name, dtype }) => ({ name, dtype }));
  const contents: Contents = { magic: MAGIC, config: config.length, header: header.length, tensors: kept };
  return Buffer.concat([Buffer.from(`${JSON.stringify(contents)}\n`), config, header]);
}

/** The way back; undefined for bytes that `encodeAdapter` did not write. */
export function decodeAdapter(bytes: Uint8Array): AdapterTemplate | undefined {
  const start = bytes.indexOf(10) + 1;
  try {
    const contents = JSON.parse(new TextDecoder().decode(bytes.subarray(0, start))) as Contents;
    const split = start + contents.config;
    if (contents.magic !== MAGIC || split + contents.header !== bytes.length) return undefined;
    return { config: bytes.subarray(start, split), header: bytes.subarray(split), tensors: contents.tensors };
  } catch {
    return undefined;
  }
}
