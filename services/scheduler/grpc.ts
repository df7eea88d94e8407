import { valueOf } from "#common/adapters/grpc/answer.js";
import type { Handlers } from "#common/adapters/grpc/handlers.js";
import type { JobServiceServer } from "#proto/shoal/v1/job_service.js";
import type { JobApi } from "./job-api.js";

/** JobService on gRPC. */
export function serveJobs(api: JobApi, handlers: Handlers): JobServiceServer {
  return {
    apply: handlers.unary(async (request) => valueOf(await api.apply(request))),
    get: handlers.unary(async (request) => valueOf(await api.get(request))),
    list: handlers.unary(async (request) => valueOf(await api.list(request))),
    watch: handlers.serverStream((request, { signal }) => valueOf(api.watch(request, signal))),
    cancel: handlers.unary(async (request) => valueOf(await api.cancel(request))),
    delete: handlers.unary(async (request) => valueOf(await api.delete(request))),
    explain: handlers.unary(async (request) => valueOf(await api.explain(request))),
    listRounds: handlers.unary(async (request) => valueOf(await api.listRounds(request))),
  };
}
