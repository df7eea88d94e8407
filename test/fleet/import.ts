import type { ServiceError } from "@grpc/grpc-js";
import { ImportRequest, type ImportResponse, type ModelServiceClient } from "#proto/shoal/v1/model_service.js";

const PIECE_BYTES = 256 * 1024;

/** Streams the files of a model into the control plane. */
export function importFiles(
  models: ModelServiceClient,
  name: string,
  files: Readonly<Record<string, Uint8Array>>,
): Promise<ImportResponse> {
  return new Promise((resolve, reject) => {
    const stream = models.import((error: ServiceError | null, response) => {
      if (error === null) resolve(response);
      else reject(error);
    });
    // The server may answer before it was sent everything.
    stream.on("error", () => undefined);
    stream.write(ImportRequest.fromPartial({ part: { $case: "header", value: { name } } }));
    for (const [fileName, bytes] of Object.entries(files)) {
      for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
        const data = Buffer.from(bytes.subarray(at, at + PIECE_BYTES));
        const value = { fileName, fileSizeBytes: bytes.length, data };
        stream.write(ImportRequest.fromPartial({ part: { $case: "piece", value } }));
      }
    }
    stream.end();
  });
}
