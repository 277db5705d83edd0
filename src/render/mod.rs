//! What people and programs see: one file per format, and one per purpose that formats share.

/// Sizes in memory as people say them.
pub mod bytes;
/// The trace events of Chrome.
pub mod chrome;
/// Makes text from a target harmless.
pub mod clean;
/// The flame graph.
pub mod flamegraph;
/// Folded stacks.
pub mod folded;
/// The Firefox Profiler's format.
pub mod gecko;
/// One page that stands alone.
pub mod html;
/// The report as JSON.
pub mod json;
/// One buffer with styles: the only way for text to the terminal.
pub mod page;
/// pprof's format.
pub mod pprof;
/// What the formats of a profile share.
pub mod profile;
/// What `record` says at its end.
pub mod record_summary;
/// The report itself, as plain data.
pub mod report;
/// speedscope's format.
pub mod speedscope;
/// Colours, and the marks that work without them.
pub mod style;
/// The report as text.
pub mod text;
/// Display width, cutting, wrapping.
pub mod width;
