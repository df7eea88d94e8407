import { fields, text, type RawField } from "./errors.js";

/** A file of a descriptor set and what it declares; the bytes are served as they are. */
interface DescriptorFile {
  name: string;
  bytes: Uint8Array;
  dependencies: string[];
}

/** Field numbers of google.protobuf.FileDescriptorProto and below. */
const FILE = { name: 1, package: 2, dependency: 3, message: 4, enum: 5, service: 6, extension: 7 };
const DECLARATIONS = new Set([FILE.message, FILE.enum, FILE.service, FILE.extension]);
const MESSAGE = { name: 1, field: 2, nested: 3, enum: 4, extension: 6, oneof: 8 };
const ENUM = { name: 1, value: 2 };
const SERVICE = { name: 1, method: 2 };

/** Finds files of FileDescriptorSets by name and by the symbols they declare. */
export class DescriptorSet {
  private readonly files = new Map<string, DescriptorFile>();
  private readonly fileOfSymbol = new Map<string, string>();
  readonly services: string[] = [];

  constructor(...sets: readonly Uint8Array[]) {
    for (const { number, data } of sets.flatMap((set) => fields(set))) {
      if (number !== 1) continue;
      const file = fields(data);
      const name = text(file, FILE.name);
      if (this.files.has(name)) continue;
      this.files.set(name, { name, bytes: data, dependencies: texts(file, FILE.dependency) });
      this.index(name, text(file, FILE.package), file);
    }
  }

  /** The file of this name with everything it imports, each once, itself first; undefined if unknown. */
  byFilename(name: string): Uint8Array[] | undefined {
    if (!this.files.has(name)) return undefined;
    const found = new Map<string, Uint8Array>();
    const pending = [name];
    for (let next = pending.shift(); next !== undefined; next = pending.shift()) {
      const file = this.files.get(next);
      if (file === undefined || found.has(next)) continue;
      found.set(next, file.bytes);
      pending.push(...file.dependencies);
    }
    return [...found.values()];
  }

  /** The file that declares a fully qualified symbol, with everything it imports. */
  bySymbol(symbol: string): Uint8Array[] | undefined {
    const name = this.fileOfSymbol.get(symbol.replace(/^\./, ""));
    return name === undefined ? undefined : this.byFilename(name);
  }

  /** Imports that are in no file of the set; a complete set has none. */
  missingImports(): string[] {
    const imported = [...this.files.values()].flatMap((file) => file.dependencies);
    return [...new Set(imported)].filter((name) => !this.files.has(name));
  }

  private index(file: string, scope: string, of: readonly RawField[]): void {
    const declare = (name: string): string => {
      const full = scope === "" ? name : `${scope}.${name}`;
      this.fileOfSymbol.set(full, file);
      return full;
    };
    for (const { number, data } of of) {
      if (!DECLARATIONS.has(number)) continue;
      const inner = fields(data);
      if (number === FILE.message) this.indexMessage(file, declare(text(inner, MESSAGE.name)), inner);
      else if (number === FILE.enum) this.indexEnum(file, scope, inner);
      else if (number === FILE.extension) declare(text(inner, 1));
      else if (number === FILE.service) {
        const service = declare(text(inner, SERVICE.name));
        this.services.push(service);
        this.indexNames(file, service, inner, SERVICE.method);
      }
    }
  }

  private indexMessage(file: string, message: string, of: readonly RawField[]): void {
    for (const number of [MESSAGE.field, MESSAGE.oneof, MESSAGE.extension]) this.indexNames(file, message, of, number);
    for (const { number, data } of of) {
      if (number !== MESSAGE.enum && number !== MESSAGE.nested) continue;
      const inner = fields(data);
      if (number === MESSAGE.enum) this.indexEnum(file, message, inner);
      if (number !== MESSAGE.nested) continue;
      const nested = `${message}.${text(inner, MESSAGE.name)}`;
      this.fileOfSymbol.set(nested, file);
      this.indexMessage(file, nested, inner);
    }
  }

  /** Values of an enum are declared beside it, not in it. */
  private indexEnum(file: string, scope: string, of: readonly RawField[]): void {
    this.fileOfSymbol.set(`${scope}.${text(of, ENUM.name)}`, file);
    this.indexNames(file, scope, of, ENUM.value);
  }

  private indexNames(file: string, scope: string, of: readonly RawField[], wanted: number): void {
    for (const { number, data } of of)
      if (number === wanted) this.fileOfSymbol.set(`${scope}.${text(fields(data), 1)}`, file);
  }
}

function texts(of: readonly RawField[], number: number): string[] {
  return of.filter((field) => field.number === number).map(({ data }) => new TextDecoder().decode(data));
}
