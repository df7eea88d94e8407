import { DeviceWithLease } from "#proto/shoal/v1/fleet_service.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { RoundWithResult } from "#proto/shoal/v1/job_service.js";
import { Dataset, Model } from "#proto/shoal/v1/model.js";
import { keyValue } from "../arguments.js";
import { call, type Clients } from "../calls.js";
import { writeJson } from "../io.js";
import { listDatasets, listDevices, listJobs, listModels, listRounds } from "../lists.js";
import { formatTable, type Column } from "../output/table.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";
import { datasetColumns, deviceColumns, jobColumns, modelColumns, roundColumns } from "./tables.js";
import { showEvents, type EventOptions } from "./events.js";

interface ListOptions extends RemoteOptions {
  readonly selector?: Record<string, string>;
}

/** Fetches rows and writes them as a table or as JSON. */
async function show<Row>(
  shell: Shell,
  options: RemoteOptions,
  rows: (clients: Clients) => Promise<Row[]>,
  columns: readonly Column<Row>[],
  toJson: (row: Row) => unknown,
): Promise<void> {
  const found = await withClients(shell, options, rows);
  if (options.json === true) writeJson(shell.io, found.map(toJson));
  else if (found.length === 0) shell.io.err("nothing found\n");
  else shell.io.out(formatTable(columns, found));
}

async function oneJob(clients: Clients, name: string): Promise<TrainingJob[]> {
  const { job } = await call(clients.jobs.get.bind(clients.jobs), { name });
  return job === undefined ? [] : [job];
}

async function oneDevice(clients: Clients, name: string): Promise<DeviceWithLease[]> {
  const { device } = await call(clients.fleet.getDevice.bind(clients.fleet), { name });
  return device === undefined ? [] : [device];
}

async function oneModel(clients: Clients, name: string): Promise<Model[]> {
  const { model } = await call(clients.models.getModel.bind(clients.models), { name });
  return model === undefined ? [] : [model];
}

export const getCommands: CommandGroup = (program, shell) => {
  const get = program.command("get").description("list resources, or show one");
  const nowMs = (): number => shell.io.nowMs();

  takesRemote(get.command("jobs [name]").alias("job").description("training jobs"))
    .option("-l, --selector <k=v>", "only jobs with this label (repeatable)", keyValue)
    .action((name: string | undefined, options: ListOptions) => {
      const rows = (clients: Clients): Promise<TrainingJob[]> =>
        name === undefined ? listJobs(clients, options.selector) : oneJob(clients, name);
      return show(shell, options, rows, jobColumns(nowMs()), (row) => TrainingJob.toJSON(row));
    });

  takesRemote(get.command("devices [name]").alias("device").description("the fleet"))
    .option("-l, --selector <k=v>", "only devices with this label (repeatable)", keyValue)
    .action((name: string | undefined, options: ListOptions) => {
      const rows = (clients: Clients): Promise<DeviceWithLease[]> =>
        name === undefined ? listDevices(clients, options.selector) : oneDevice(clients, name);
      return show(shell, options, rows, deviceColumns(nowMs()), (row) => DeviceWithLease.toJSON(row));
    });

  takesRemote(get.command("rounds").description("rounds of a job with their results"))
    .requiredOption("-j, --job <name>", "the job")
    .action((options: RemoteOptions & { job: string }) =>
      show(
        shell,
        options,
        (clients) => listRounds(clients, options.job),
        roundColumns,
        (row) => RoundWithResult.toJSON(row),
      ),
    );

  takesRemote(get.command("models [name]").alias("model").description("models")).action(
    (name: string | undefined, options: RemoteOptions) => {
      const rows = (clients: Clients): Promise<Model[]> =>
        name === undefined ? listModels(clients) : oneModel(clients, name);
      return show(shell, options, rows, modelColumns(nowMs()), (row) => Model.toJSON(row));
    },
  );

  takesRemote(get.command("datasets").description("passports of datasets")).action((options: RemoteOptions) =>
    show(shell, options, listDatasets, datasetColumns, (row) => Dataset.toJSON(row)),
  );

  takesRemote(get.command("events").description("what happened so far"))
    .option("-j, --job <name>", "only what concerns this job")
    .action((options: EventOptions) => showEvents(shell, { ...options, follow: false }));
};
