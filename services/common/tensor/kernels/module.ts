import { readFileSync } from "node:fs";

type Add = (src: number, count: number, sums: number, factor: number) => number;
type Decode = (src: number, count: number, out: number) => number;
type Squares = (src: number, count: number) => number;
type Encode = (src: number, count: number, out: number) => number;

/** What `assembly/index.ts` exports. Arguments are places in memory, in bytes, and counts of values. */
export interface KernelExports {
  readonly memory: WebAssembly.Memory;
  checksum(src: number, bytes: number): number;
  mix(hash: number, word: number): number;
  readonly squares: Squares;
  readonly squaresBf16: Squares;
  readonly squaresInt8: Squares;
  readonly squaresInt4: Squares;
  divide(sums: number, count: number, by: number, out: number): void;
  addSquares(src: number, count: number, lanes: number): void;
  finite(src: number, count: number): number;
  stepScaled(weights: number, direction: number, count: number, rate: number): void;
  stepNesterov(
    ...args: [weights: number, direction: number, buffer: number, count: number, rate: number, momentum: number]
  ): void;
  readonly addFp32: Add;
  readonly addBf16: Add;
  readonly addInt8: Add;
  readonly addInt4: Add;
  addTopK(...args: [...Parameters<Add>, keep: number, block: number, bits: number]): number;
  readonly decodeFp32: Decode;
  readonly decodeBf16: Decode;
  readonly decodeInt8: Decode;
  readonly decodeInt4: Decode;
  decodeTopK(...args: [...Parameters<Decode>, keep: number, block: number, bits: number]): number;
  readonly encodeInt8: Encode;
  readonly encodeInt4: Encode;
}

/** Values that fit beside a chunk; no codec has more in one. */
export const MAX_CHUNK_VALUES = 524_288;

/** Where a chunk lies. After every region there is room for one step (assembly/lanes.ts). */
export const CHUNK_AT = 0;
const PAGE_BYTES = 65_536;
/** Room for one step of any kernel behind the last region. */
export const STEP_BYTES = PAGE_BYTES;
/** Where fp32 values or float64 sums lie. */
export const VALUES_AT = 9 * PAGE_BYTES;

/** Kernels that the build makes out of AssemblyScript, and that are not there. */
class KernelsMissing extends Error {
  readonly code = "KERNELS_MISSING";

  constructor(path: string, options: ErrorOptions) {
    super(
      `${path} cannot be read: \`npm run build\` makes it, and an installation must hold it beside its module`,
      options,
    );
    this.name = this.code;
  }
}

/** Compiles a file of kernels. Throws code "KERNELS_MISSING" if it cannot be read. */
export function compileKernels(file: URL): WebAssembly.Module {
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = readFileSync(file);
  } catch (error) {
    throw new KernelsMissing(decodeURI(file.pathname), { cause: error });
  }
  return new WebAssembly.Module(bytes);
}

const module = compileKernels(new URL("kernels.wasm", import.meta.url));

/** The kernels with a memory of their own, of about 5 MB, or of so many bytes from VALUES_AT on. */
export function instantiate(valueBytes = 0): KernelExports {
  // The build makes the module out of assembly/index.ts, so it has these exports.
  const exports = new WebAssembly.Instance(module).exports as KernelExports;
  const { memory } = exports;
  const pages = Math.ceil((VALUES_AT + valueBytes) / PAGE_BYTES);
  memory.grow(Math.max(0, pages - memory.buffer.byteLength / PAGE_BYTES));
  return exports;
}
