//! The report: what people and programs get to see of a snapshot and its findings.
//!
//! Its JSON shape is a promise (`hangscope.report/1`): adding to it is free, changing it is not.

use crate::diagnose::{Finding, Findings};
use crate::snapshot::{Look, Process, Skipped, Snapshot};
use schemars::JsonSchema;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

/// The version of the report's shape.
pub const SCHEMA: &str = "hangscope.report/1";

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Report {
    /// Always `hangscope.report/1`.
    pub schema: String,
    /// The hangscope that wrote it.
    pub version: String,
    /// Wall-clock time of the first look, RFC 3339, UTC.
    pub captured_at: String,
    pub host: String,
    pub looks: Vec<Look>,
    pub processes: Vec<ReportProcess>,
    /// Findings that concern more than one process; those of one stand with it.
    pub findings: Vec<Finding>,
    pub skipped: Vec<Skipped>,
}

/// A process of the snapshot, with what was found about it.
#[derive(Clone, Debug, Deserialize, PartialEq, JsonSchema)]
pub struct ReportProcess {
    #[serde(flatten)]
    pub process: Process,
    pub findings: Vec<Finding>,
}

impl Report {
    /// The report of a snapshot about which nothing has been found yet.
    pub fn new(snapshot: Snapshot) -> Report {
        let Snapshot { captured_at, host, looks, processes, skipped } = snapshot;
        Report {
            schema: SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            captured_at,
            host,
            looks,
            processes: processes
                .into_iter()
                .map(|process| ReportProcess { process, findings: Vec::new() })
                .collect(),
            findings: Vec::new(),
            skipped,
        }
    }

    /// And what was found about it.
    pub fn with(mut self, found: Findings) -> Report {
        // Those that no finding speaks of were read to see that there is nothing to see.
        self.processes.retain(|p| !p.process.followed || found.speaks_of(p.process.pid));
        for (pid, findings) in found.processes {
            match self.processes.iter_mut().find(|p| p.process.pid == pid) {
                Some(process) => process.findings.extend(findings),
                None => self.findings.extend(findings),
            }
        }
        self.findings.extend(found.global);
        if let (Some(first), false) = (self.processes.first_mut(), found.problems.is_empty()) {
            first.process.problems.extend(found.problems);
        }
        self
    }
}

/// Written out rather than derived, because a flattened `Process` would put `findings` after its
/// `problems`. The exhaustive pattern makes a field that is added to `Process` fail to compile here.
impl Serialize for ReportProcess {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        macro_rules! fields_in_order {
            ($($field:ident)*; $($last:ident)*) => {{
                let Process { $($field,)* $($last,)* kin: _ } = &self.process;
                let count = [$(stringify!($field),)* "findings", $(stringify!($last),)*].len();
                let mut out = serializer.serialize_struct("Process", count)?;
                $(out.serialize_field(stringify!($field), $field)?;)*
                out.serialize_field("findings", &self.findings)?;
                $(out.serialize_field(stringify!($last), $last)?;)*
                out.end()
            }};
        }
        fields_in_order!(
            pid parent command executable executable_replaced cwd python followed uptime rss open_fds fd_limit
            listens connections children server cpu_throttled interpreters threads tasks; problems
        )
    }
}
