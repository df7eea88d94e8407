import { readFile } from "node:fs/promises";
import { BinaryReader, BinaryWriter } from "@bufbuild/protobuf/wire";
import { status, type Server, type ServerDuplexStream } from "@grpc/grpc-js";
import { CodedError } from "../coded-error.js";
import { DescriptorSet } from "./descriptor-set.js";

/** From the compiled file up to the package. */
const PACKAGE = new URL("../../../../../", import.meta.url);
/** The contracts, made by `npm run generate`, and gRPC's own services, made by `buf build` of the folder it lies in. */
const DESCRIPTORS = ["proto/gen/descriptors.binpb", "services/common/adapters/grpc/protos/descriptors.binpb"];
const SERVICES = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
const HEALTH = "grpc.health.v1.Health";

/** Field numbers of ServerReflectionRequest. */
const ASKS = { filename: 3, symbol: 4, extension: 5, extensionsOf: 6, services: 7 };

/** The descriptor sets that belong to the package. Throws code "DESCRIPTORS_MISSING". */
export async function loadDescriptors(): Promise<DescriptorSet> {
  try {
    const sets = await Promise.all(DESCRIPTORS.map((path) => readFile(new URL(path, PACKAGE))));
    return new DescriptorSet(...sets);
  } catch (error) {
    throw new CodedError("DESCRIPTORS_MISSING", `cannot read ${DESCRIPTORS.join(" and ")}; run npm run generate`, {
      cause: error,
    });
  }
}

/**
 * Adds gRPC server reflection, v1 and v1alpha, to a server: its services, and every file of theirs with all imports.
 * The descriptors are served byte for byte as the compiler wrote them.
 */
export async function addReflection(server: Server, services: readonly string[]): Promise<void> {
  const descriptors = await loadDescriptors();
  const names = [...services, HEALTH, ...SERVICES].sort();
  for (const service of SERVICES) {
    const method = {
      path: `/${service}/ServerReflectionInfo`,
      requestStream: true,
      responseStream: true,
      requestSerialize: (value: Uint8Array) => Buffer.from(value),
      requestDeserialize: (value: Buffer): Uint8Array => value,
      responseSerialize: (value: Uint8Array) => Buffer.from(value),
      responseDeserialize: (value: Buffer): Uint8Array => value,
    };
    server.addService(
      { ServerReflectionInfo: method },
      {
        ServerReflectionInfo: (call: ServerDuplexStream<Uint8Array, Uint8Array>) => {
          call.on("data", (request: Uint8Array) => call.write(answer(request, descriptors, names)));
          call.on("end", () => call.end());
          call.on("error", () => call.end());
        },
      },
    );
  }
}

/** ServerReflectionResponse { valid_host = 1, original_request = 2, ...one answer } to a ServerReflectionRequest. */
function answer(request: Uint8Array, descriptors: DescriptorSet, services: readonly string[]): Uint8Array {
  const writer = new BinaryWriter().uint32(18).bytes(request);
  const ask = readAsk(request);
  if (ask?.number === ASKS.services) {
    writer.uint32(50).fork();
    for (const name of services) writer.uint32(10).fork().uint32(10).string(name).join();
    return writer.join().finish();
  }
  const files =
    ask?.number === ASKS.filename
      ? descriptors.byFilename(ask.value)
      : ask?.number === ASKS.symbol
        ? descriptors.bySymbol(ask.value)
        : undefined;
  if (files === undefined) {
    // proto3 files of ours declare no extensions, so questions for them have no other answer.
    const message = ask === undefined ? "unknown question" : `not found: ${ask.value}`;
    const code = ask === undefined ? status.INVALID_ARGUMENT : status.NOT_FOUND;
    return writer.uint32(58).fork().uint32(8).int32(code).uint32(18).string(message).join().finish();
  }
  writer.uint32(34).fork();
  for (const file of files) writer.uint32(10).bytes(file);
  return writer.join().finish();
}

function readAsk(request: Uint8Array): { number: number; value: string } | undefined {
  const known = new Set(Object.values(ASKS));
  let ask: { number: number; value: string } | undefined;
  try {
    const reader = new BinaryReader(request);
    while (reader.pos < reader.len) {
      const [number, wireType] = reader.tag();
      if ((wireType as number) !== 2) reader.skip(wireType);
      else {
        const value = new TextDecoder().decode(reader.bytes());
        if (known.has(number)) ask = { number, value };
      }
    }
  } catch {
    return undefined;
  }
  return ask;
}
