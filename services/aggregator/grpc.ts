import { valueOf } from "#common/adapters/grpc/answer.js";
import type { Handlers } from "#common/adapters/grpc/handlers.js";
import type { AggregatorServiceServer } from "#proto/shoal/v1/aggregator_service.js";
import type { AggregatorApi } from "./aggregator-api.js";

/** AggregatorService on gRPC. */
export function serveAggregator(api: AggregatorApi, handlers: Handlers): AggregatorServiceServer {
  return {
    replayRound: handlers.serverStream(async function* (request, { signal }) {
      yield* valueOf(await api.replayRound(request, signal));
    }),
    verifyJob: handlers.serverStream(async function* (request, { signal }) {
      yield* valueOf(await api.verifyJob(request, signal));
    }),
  };
}
