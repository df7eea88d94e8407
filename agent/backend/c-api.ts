import { readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import koffi, { type LibraryHandle } from "koffi";
import type { InferenceSession, Tensor, TensorConstructor } from "onnxruntime-common";
import { decodeInterface, type DecodedValue } from "#common/graph/decoding.js";
import { metadataOf, type OrtSession, type Tensors } from "./runtime.js";

/**
 * ONNX Runtime's C API (onnxruntime_c_api.h), called on the very library that onnxruntime-node ships. That package's own
 * binding copies every output into a new array, which for a training step is the whole state, and computes on the
 * thread that answers messages; here outputs are written where they belong, and runs are on threads of the process's pool.
 */

/** An address of something that the runtime owns. */
type Pointer = bigint;
/** Room for a pointer that a call gives back. */
type Slot = BigUint64Array;
/** A null pointer, or the reason why a call failed. */
type Status = Pointer | null;

/** The version of the table of functions that is asked for; functions never change their place in it. */
const API_VERSION = 17;
const POINTER_BYTES = 8;
/** The runtime's kernels keep panels of matrices on the stack; the default of 128 KiB is too near to what they take. */
const STACK_BYTES = 8 * 2 ** 20;
const HEAP_BYTES = 2 ** 20;
const LOG_FATAL = 4;
const NO_OPTIMIZATIONS = 0;
const ALL_OPTIMIZATIONS = 99;
const ARENA_ALLOCATOR = 1;
const DEFAULT_MEMORY = 0;
const ELEMENT_TYPES: Readonly<Record<string, number>> = { float32: 1, uint8: 2, int32: 6, int64: 7, bool: 9 };

interface RunArguments {
  readonly session: Pointer;
  readonly inputNames: Slot;
  readonly inputs: Slot;
  readonly outputNames: Slot;
  readonly outputs: Slot;
}

interface Functions {
  getErrorMessage(status: Pointer): string;
  createEnv(level: number, name: string, out: Slot): Status;
  createSessionFromArray(env: Pointer, model: Uint8Array, bytes: number, options: Pointer, out: Slot): Status;
  run(args: RunArguments): Promise<Status>;
  createSessionOptions(out: Slot): Status;
  disableMemPattern(options: Pointer): Status;
  setLogLevel(options: Pointer, level: number): Status;
  setOptimizationLevel(options: Pointer, level: number): Status;
  setIntraOpThreads(options: Pointer, threads: number): Status;
  createTensor(
    info: Pointer,
    data: Pointer,
    bytes: number,
    dims: BigInt64Array,
    rank: number,
    type: number,
    out: Slot,
  ): Status;
  createCpuMemoryInfo(allocator: number, memory: number, out: Slot): Status;
  releaseStatus(status: Pointer): void;
  releaseSession(session: Pointer): void;
  releaseValue(value: Pointer): void;
  releaseSessionOptions(options: Pointer): void;
  addConfigEntry(options: Pointer, key: string, value: string): Status;
}

/** Where the package keeps the runtime for this platform. */
function libraryPath(): string {
  const root = dirname(dirname(createRequire(import.meta.url).resolve("onnxruntime-node")));
  const [abi] = readdirSync(join(root, "bin")).filter((name) => name.startsWith("napi-"));
  const folder = join(root, "bin", abi ?? "", process.platform, process.arch);
  const file = readdirSync(folder).find((name) => /^(lib)?onnxruntime\.(so\.\d+|\d+\.dylib|dll)$/.test(name));
  if (file === undefined) throw new Error(`${folder} has no ONNX Runtime library`);
  return join(folder, file);
}

type RunCallback = (error: Error | null, status: Status) => void;
interface RunFunction {
  async(...args: [...(Pointer | number | null)[], RunCallback]): void;
}

/** Kept for the life of the process: a library that nothing refers to would be unloaded under its own threads. */
let loaded: { library: LibraryHandle; functions: Functions; env: Pointer; memory: Pointer } | undefined;

/** Functions by their place in the table of onnxruntime_c_api.h. */
function functionsOf(library: LibraryHandle): Functions {
  const base = library.func("void *OrtGetApiBase()")() as Pointer;
  const getApi = koffi.decode(koffi.decode(base, 0, "void *"), koffi.proto("void *GetApi(uint32_t version)")) as (
    version: number,
  ) => Pointer | null;
  const api = getApi(API_VERSION);
  if (api === null) throw new Error(`the library does not know version ${API_VERSION} of its interface`);
  const at = (place: number, prototype: string): unknown =>
    koffi.decode(koffi.decode(api, place * POINTER_BYTES, "void *"), koffi.proto(prototype));
  const run = at(
    9,
    "void *Run(void *session, void *options, void *inNames, void *in, size_t ins, void *outNames, size_t outs, void *out)",
  ) as RunFunction;
  return {
    getErrorMessage: at(2, "const char *GetErrorMessage(void *status)") as Functions["getErrorMessage"],
    createEnv: at(3, "void *CreateEnv(int level, const char *id, void *out)") as Functions["createEnv"],
    createSessionFromArray: at(
      8,
      "void *CreateSessionFromArray(void *env, void *model, size_t bytes, void *options, void *out)",
    ) as Functions["createSessionFromArray"],
    run: ({ session, inputNames, inputs, outputNames, outputs }) =>
      new Promise((resolve, reject) => {
        const taken = [addressOf(inputNames), addressOf(inputs), inputNames.length] as const;
        const given = [addressOf(outputNames), outputNames.length, addressOf(outputs)] as const;
        run.async(session, null, ...taken, ...given, (error, status) => {
          if (error === null) resolve(status);
          else reject(error);
        });
      }),
    createSessionOptions: at(10, "void *CreateSessionOptions(void *out)") as Functions["createSessionOptions"],
    disableMemPattern: at(17, "void *DisableMemPattern(void *options)") as Functions["disableMemPattern"],
    setLogLevel: at(22, "void *SetSessionLogSeverityLevel(void *options, int level)") as Functions["setLogLevel"],
    setOptimizationLevel: at(
      23,
      "void *SetSessionGraphOptimizationLevel(void *options, int level)",
    ) as Functions["setOptimizationLevel"],
    setIntraOpThreads: at(24, "void *SetIntraOpNumThreads(void *options, int n)") as Functions["setIntraOpThreads"],
    createTensor: at(
      49,
      "void *CreateTensorWithDataAsOrtValue(void *info, void *data, size_t bytes, void *dims, size_t rank, int type, void *out)",
    ) as Functions["createTensor"],
    createCpuMemoryInfo: at(
      69,
      "void *CreateCpuMemoryInfo(int allocator, int memory, void *out)",
    ) as Functions["createCpuMemoryInfo"],
    releaseStatus: at(93, "void ReleaseStatus(void *status)") as Functions["releaseStatus"],
    releaseSession: at(95, "void ReleaseSession(void *session)") as Functions["releaseSession"],
    releaseValue: at(96, "void ReleaseValue(void *value)") as Functions["releaseValue"],
    releaseSessionOptions: at(100, "void ReleaseSessionOptions(void *options)") as Functions["releaseSessionOptions"],
    addConfigEntry: at(
      130,
      "void *AddSessionConfigEntry(void *options, const char *key, const char *value)",
    ) as Functions["addConfigEntry"],
  };
}

/** @throws Error with the runtime's own message */
function check(functions: Functions, status: Status): void {
  if (status === null) return;
  const message = functions.getErrorMessage(status);
  functions.releaseStatus(status);
  throw new Error(message);
}

/** The pointer that a call gives back. */
function made(functions: Functions, call: (out: Slot) => Status): Pointer {
  const out = new BigUint64Array(1);
  check(functions, call(out));
  return out[0] ?? 0n;
}

function load(): NonNullable<typeof loaded> {
  if (loaded !== undefined) return loaded;
  koffi.config({
    ...{ sync_stack_size: STACK_BYTES, sync_heap_size: HEAP_BYTES },
    ...{ async_stack_size: STACK_BYTES, async_heap_size: HEAP_BYTES },
  });
  const library = koffi.load(libraryPath());
  const functions = functionsOf(library);
  const env = made(functions, (out) => functions.createEnv(LOG_FATAL, "shoal", out));
  const memory = made(functions, (out) => functions.createCpuMemoryInfo(ARENA_ALLOCATOR, DEFAULT_MEMORY, out));
  loaded = { library, functions, env, memory };
  return loaded;
}

/** Loads the library. @throws Error if that is not possible on this platform */
export function canLoad(): void {
  load();
}

type NumericArray = Float32Array | BigInt64Array | Uint8Array | Int32Array;

/** Where the elements of a typed array are. Asking for its buffer moves a small one to where it stays. */
function addressOf(data: NumericArray | BigUint64Array): Pointer {
  return koffi.address(data.buffer) + BigInt(data.byteOffset);
}

/** Names as a C array of C strings; the bytes must be kept as long as it is in use. */
function cStrings(names: readonly string[]): { pointers: Slot; bytes: readonly Uint8Array[] } {
  const bytes = names.map((name) => new Uint8Array(new TextEncoder().encode(`${name}\0`)));
  return { pointers: BigUint64Array.from(bytes, addressOf), bytes };
}

type Interface = ReturnType<typeof decodeInterface>;

/** A graph opened through the C API. */
class DirectSession implements OrtSession {
  readonly inputNames: readonly string[];
  readonly inputMetadata: readonly InferenceSession.ValueMetadata[];
  readonly outputMetadata: readonly InferenceSession.ValueMetadata[];
  readonly #Tensor: TensorConstructor;
  readonly #outputs: readonly DecodedValue[];
  readonly #session: Pointer;
  /** Runs that are not over, and all that they read or write: it must not be collected, nor the session released. */
  readonly #running = new Map<Promise<unknown>, readonly unknown[]>();
  #released = false;

  constructor({ inputs, outputs }: Interface, session: Pointer, Tensor: TensorConstructor) {
    this.#Tensor = Tensor;
    this.#session = session;
    this.#outputs = outputs;
    this.inputNames = inputs.map(({ name }) => name);
    this.inputMetadata = inputs.map(metadataOf);
    this.outputMetadata = outputs.map(metadataOf);
  }

  async run(feeds: Tensors): Promise<InferenceSession.ReturnType> {
    const outputs = this.#outputs.map(({ name, shape }) => {
      if (shape.some(Number.isNaN)) throw new TypeError(`output ${name} of the graph has an open dimension`);
      const data = new Float32Array(shape.reduce((all, d) => all * d, 1));
      return [name, new this.#Tensor("float32", data, shape)] as const;
    });
    const results = Object.fromEntries(outputs);
    await this.runInto(feeds, results);
    return results;
  }

  async runInto(feeds: Tensors, outputs: Tensors): Promise<void> {
    if (this.#released) throw new Error("the session is released");
    const { functions } = load();
    const missing = this.inputNames.find((name) => feeds[name] === undefined);
    if (missing !== undefined) throw new Error(`input ${missing} is missing`);
    const [inputNames, outputNames] = [cStrings(this.inputNames), cStrings(Object.keys(outputs))];
    const values: Pointer[] = [];
    const valueOf = (tensor: Tensor | undefined): Pointer => {
      const value = createValue(tensor);
      values.push(value);
      return value;
    };
    try {
      const inputs = BigUint64Array.from(this.inputNames, (name) => valueOf(feeds[name]));
      const results = BigUint64Array.from(Object.values(outputs), valueOf);
      const running = functions.run({
        ...{ session: this.#session, inputNames: inputNames.pointers, inputs },
        ...{ outputNames: outputNames.pointers, outputs: results },
      });
      this.#running.set(running, [inputNames, inputs, feeds, outputNames, results, outputs]);
      const status = await running.finally(() => this.#running.delete(running));
      check(functions, status);
    } finally {
      for (const value of values) functions.releaseValue(value);
    }
  }

  async release(): Promise<void> {
    if (this.#released) return;
    this.#released = true;
    await Promise.allSettled(this.#running.keys());
    load().functions.releaseSession(this.#session);
  }
}

/** A tensor of the runtime's over the very memory of one of ours. */
function createValue(tensor: Tensor | undefined): Pointer {
  const { functions, memory } = load();
  const type = tensor === undefined ? undefined : ELEMENT_TYPES[tensor.type];
  if (tensor === undefined || type === undefined) throw new TypeError(`no tensor of type ${tensor?.type ?? "none"}`);
  const data = tensor.data as NumericArray;
  // A scalar has no dimensions, but an empty array no address.
  const dims = BigInt64Array.from([...tensor.dims, 0], BigInt);
  return made(functions, (out) =>
    functions.createTensor(memory, addressOf(data), data.byteLength, dims, tensor.dims.length, type, out),
  );
}

export interface DirectOptions {
  /** Threads inside one operator. */
  readonly threads: number;
  /** Whether the runtime may rewrite the graph for speed, which it does if absent. */
  readonly rewrite?: boolean;
  /** Entries of onnxruntime_session_options_config_keys.h. */
  readonly config: Readonly<Record<string, string>>;
}

/** Opens a graph on the processor. @throws Error if the library cannot be loaded or refuses the graph */
export function openDirect(graph: Uint8Array, options: DirectOptions, Tensor: TensorConstructor): OrtSession {
  const { functions, env } = load();
  const declared = decodeInterface(graph);
  const settings = made(functions, (out) => functions.createSessionOptions(out));
  try {
    check(functions, functions.disableMemPattern(settings));
    check(functions, functions.setLogLevel(settings, LOG_FATAL));
    check(
      functions,
      functions.setOptimizationLevel(settings, options.rewrite === false ? NO_OPTIMIZATIONS : ALL_OPTIMIZATIONS),
    );
    check(functions, functions.setIntraOpThreads(settings, options.threads));
    for (const [key, value] of Object.entries(options.config)) {
      check(functions, functions.addConfigEntry(settings, key, value));
    }
    const session = made(functions, (out) => functions.createSessionFromArray(env, graph, graph.length, settings, out));
    return new DirectSession(declared, session, Tensor);
  } finally {
    functions.releaseSessionOptions(settings);
  }
}
