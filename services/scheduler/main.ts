import { hostService } from "#common/adapters/service-host.js";
import { Controller } from "#common/runtime/controller.js";
import { JobServiceService } from "#proto/shoal/v1/job_service.js";
import { GraphLibrary } from "./graph-library.js";
import { serveJobs } from "./grpc.js";
import { JobApi } from "./job-api.js";
import { JobController } from "./job-controller.js";
import { RoundController } from "./round-controller.js";
import { jobSources, roundSources } from "./wake-ups.js";

await hostService("scheduler", (host) => {
  const { store, blobs, clock, log, metrics, updateLog: updates } = host;
  const graphs = new GraphLibrary(blobs);
  const jobs = new JobController({ store, blobs, graphs, clock, log });
  const rounds = new RoundController({ store, updates, graphs, clock, log, metrics });
  const shared = { clock, log, metrics, random: Math.random, resyncMs: host.config.resyncMs };
  const jobController = new Controller({
    ...shared,
    name: "job-controller",
    sources: jobSources(store),
    queue: host.queue("scheduler-jobs"),
    reconcile: (key) => jobs.reconcile(key),
  });
  const roundController = new Controller({
    ...shared,
    name: "round-controller",
    sources: roundSources(store, rounds),
    queue: host.queue("scheduler-rounds"),
    reconcile: (key) => rounds.reconcile(key),
  });
  host.grpc.addService(JobServiceService, serveJobs(new JobApi({ store, updates, clock }), host.handlers));
  host.background("job-controller", (signal) => jobController.run(signal));
  host.background("round-controller", (signal) => roundController.run(signal));
  return Promise.resolve();
});
