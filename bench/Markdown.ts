/** Generated parts of a document: tables, laid out as the formatter would, between markers. */
import * as Data from "effect/Data"
import * as Result from "effect/Result"

export interface Column {
  readonly title: string
  /** Texts go to the left, figures to the right. */
  readonly align: "left" | "right"
}

/** A table; cells hold no `|`. */
export const table = (columns: ReadonlyArray<Column>, rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = columns.map(({ title }, n) => Math.max(3, title.length, ...rows.map((row) => row[n]!.length)))
  const line = (cells: ReadonlyArray<string>) => `| ${cells.join(" | ")} |`
  const pad = (text: string, n: number) =>
    columns[n]!.align === "left" ? text.padEnd(widths[n]!) : text.padStart(widths[n]!)
  return [
    line(columns.map(({ title }, n) => pad(title, n))),
    line(columns.map(({ align }, n) => (align === "left" ? "-".repeat(widths[n]!) : `${"-".repeat(widths[n]! - 1)}:`))),
    ...rows.map((row) => line(row.map(pad)))
  ].join("\n")
}

/** The document has no place for a generated part. */
export class MarkerMissing extends Data.TaggedError("MarkerMissing")<{ readonly name: string }> {
  override get message(): string {
    return `the document has no markers "begin ${this.name}" and "end ${this.name}"`
  }
}

/** Puts `content` between the comments `begin NAME` and `end NAME`, in place of what stands there. */
export const fill = (document: string, name: string, content: string): Result.Result<string, MarkerMissing> => {
  const [begin, end] = [`<!-- begin ${name} -->`, `<!-- end ${name} -->`]
  const from = document.indexOf(begin) + begin.length
  const to = document.indexOf(end, from)
  return from < begin.length || to < 0
    ? Result.fail(new MarkerMissing({ name }))
    : Result.succeed(`${document.slice(0, from)}\n\n${content}\n\n${document.slice(to)}`)
}
