import { readFileSync } from "node:fs";
import type { ServiceError } from "@grpc/grpc-js";
import { parse } from "yaml";
import { fromServiceError } from "#common/adapters/grpc/errors.js";
import { call, isServiceError, type Clients } from "../calls.js";
import { CliError, EXIT } from "../exit.js";
import { writeJson, type Io } from "../io.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions } from "../shell.js";
import { formatViolations } from "../violations.js";
import { Dataset } from "#proto/shoal/v1/model.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";

interface ApplyOptions extends RemoteOptions {
  readonly file: string;
  readonly dryRun?: boolean;
}

async function readManifest(io: Io, file: string): Promise<string> {
  if (file === "-") return io.readStdin();
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw new CliError(`${file} cannot be read: ${(error as Error).message}`, EXIT.invalid);
  }
}

/** The manifest's kind as far as it can be told; the service judges the rest. */
export function kindOf(manifest: string): string | undefined {
  try {
    const value: unknown = parse(manifest);
    if (typeof value !== "object" || value === null || !("kind" in value)) return undefined;
    return typeof value.kind === "string" ? value.kind : undefined;
  } catch {
    return undefined;
  }
}

async function send(clients: Clients, manifest: string, dryRun: boolean): Promise<{ line: string; json: unknown }> {
  if (kindOf(manifest) === "Dataset") {
    if (dryRun) throw new CliError("--dry-run is for TrainingJobs only", EXIT.usage);
    const { dataset } = await call(clients.models.applyDataset.bind(clients.models), { manifest });
    const name = dataset?.metadata?.name ?? "";
    return { line: `dataset/${name} applied`, json: dataset === undefined ? null : Dataset.toJSON(dataset) };
  }
  const source = { $case: "manifest", value: manifest } as const;
  const { job, outcome } = await call(clients.jobs.apply.bind(clients.jobs), { source, dryRun });
  const line = `job/${job?.metadata?.name ?? ""} ${outcome}${dryRun ? " (dry run)" : ""}`;
  return { line, json: { outcome, job: job === undefined ? null : TrainingJob.toJSON(job) } };
}

function refusal(file: string, manifest: string, error: ServiceError): CliError | undefined {
  const { violations } = fromServiceError(error);
  if (violations.length === 0) return undefined;
  const source = file === "-" ? "manifest" : file;
  return new CliError(formatViolations(source, manifest, violations).trimEnd(), EXIT.invalid);
}

export const applyCommands: CommandGroup = (program, shell) => {
  takesRemote(program.command("apply").description("submit a TrainingJob or Dataset, or change one"))
    .requiredOption("-f, --file <file>", "YAML or JSON manifest; - reads standard input")
    .option("--dry-run", "only validate")
    .action(async (options: ApplyOptions) => {
      const manifest = await readManifest(shell.io, options.file);
      await withClients(shell, options, async (clients) => {
        try {
          const { line, json } = await send(clients, manifest, options.dryRun ?? false);
          if (options.json === true) writeJson(shell.io, json);
          else shell.io.out(`${line}\n`);
        } catch (error) {
          throw (isServiceError(error) ? refusal(options.file, manifest, error) : undefined) ?? error;
        }
      });
    });
};
