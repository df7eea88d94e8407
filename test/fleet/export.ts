import type { ModelServiceClient } from "#proto/shoal/v1/model_service.js";

/** All files of a model, streamed out of the control plane. */
export async function exportFiles(models: ModelServiceClient, name: string): Promise<Map<string, Uint8Array>> {
  const pieces = new Map<string, Uint8Array[]>();
  for await (const response of models.export({ name, form: "", seqLen: 0 }) as AsyncIterable<{
    piece?: { fileName: string; data: Uint8Array } | undefined;
  }>) {
    const piece = response.piece;
    if (piece === undefined) continue;
    const parts = pieces.get(piece.fileName) ?? [];
    parts.push(piece.data);
    pieces.set(piece.fileName, parts);
  }
  return new Map([...pieces].map(([file, parts]) => [file, Buffer.concat(parts)]));
}
