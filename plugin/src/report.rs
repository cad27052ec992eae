//! The line that an invocation leaves on stderr: JSON with the fields of
//! Istio's plugin (level, time, scope, msg) and ours.

use serde::Serialize;
use wire::cni::{Error, LogLevel, Version};

use crate::output;

/// Filled in as the facts become known, written once at the end.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    level: &'static str,
    time: String,
    scope: &'static str,
    msg: String,
    command: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) ns: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) container: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) netns: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
    #[serde(skip)]
    severity: LogLevel,
    #[serde(skip)]
    pub(crate) threshold: LogLevel,
    #[serde(skip)]
    version: Option<Version>,
}

impl Report {
    /// The report of an invocation with `CNI_COMMAND` = `command`.
    pub(crate) fn new(command: &str) -> Self {
        Self {
            level: "",
            time: String::new(),
            scope: "cni-plugin",
            msg: String::new(),
            command: command.to_owned(),
            ns: String::new(),
            pod: String::new(),
            container: String::new(),
            netns: String::new(),
            reason: String::new(),
            code: None,
            severity: LogLevel::Debug,
            threshold: LogLevel::Info,
            version: None,
        }
    }

    /// What was done and why.
    pub(crate) fn outcome(&mut self, severity: LogLevel, msg: &str, reason: &str) {
        self.severity = severity;
        msg.clone_into(&mut self.msg);
        reason.clone_into(&mut self.reason);
    }

    /// A failure that is the invocation's.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.outcome(LogLevel::Error, &error.msg, &error.details);
        self.code = Some(error.code);
    }

    /// A failure that the invocation does without.
    pub(crate) fn tolerated(&mut self, error: &Error) {
        self.failed(error);
        self.severity = LogLevel::Warn;
    }

    /// The protocol version that was agreed on, for an error that comes later.
    pub(crate) fn agreed(&mut self, version: Version) {
        self.version = Some(version);
    }

    /// See [`Report::agreed`].
    pub(crate) fn version(&self) -> Option<Version> {
        self.version
    }

    /// Writes the line, when the configuration's level lets it through.
    pub(crate) fn write(&mut self) {
        if self.severity > self.threshold || self.msg.is_empty() {
            return;
        }
        self.level = self.severity.as_str();
        self.time = output::timestamp();
        if let Ok(mut line) = serde_json::to_string(self) {
            line.push('\n');
            output::line(&line);
        }
    }
}
