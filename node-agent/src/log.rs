//! Logs: one event a line, as text or JSON.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What a line of a stock plugin is about: Istio's scope.
pub(crate) const PLUGIN: &str = "cni-plugin";

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Where a line goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The end of a file.
    File(PathBuf),
}

impl Target {
    /// Of its name on the command line.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            path => Self::File(path.into()),
        }
    }
}

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setup {
    /// How a line looks.
    pub(crate) format: Format,
    /// A level, or a list of `target=level`.
    pub(crate) filter: String,
    /// Where lines go: to each of these.
    pub(crate) targets: Vec<Target>,
    /// Lines say where in the source they come from.
    pub(crate) caller: bool,
}

/// Starts logging.
///
/// # Errors
///
/// When the filter is none, or a file cannot be opened.
pub(crate) fn init(setup: &Setup) -> Result<()> {
    // kube logs every failed request as an error, without saying which: the agent says
    // it itself. Whoever wants kube's words names its target in the filter.
    let filter = format!("kube_client=off,{}", setup.filter);
    let filter = EnvFilter::try_new(filter).with_context(|| {
        format!(
            "log level {:?}: want error, warn, info, debug, trace, or a list of target=level",
            setup.filter
        )
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Sinks::open(&setup.targets)?)
        .with_file(setup.caller)
        .with_line_number(setup.caller)
        .with_target(false);
    let set = match setup.format {
        Format::Text => lines.with_ansi(false).try_init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}

/// Open targets.
#[derive(Debug, Clone)]
struct Sinks(Arc<Vec<Sink>>);

#[derive(Debug)]
enum Sink {
    Stdout,
    Stderr,
    File(File),
}

impl Sinks {
    fn open(targets: &[Target]) -> Result<Self> {
        let open = |target: &Target| {
            Ok(match target {
                Target::Stdout => Sink::Stdout,
                Target::Stderr => Sink::Stderr,
                Target::File(path) => {
                    let file = File::options().create(true).append(true).open(path);
                    let file = file.with_context(|| format!("--log_target: open {path:?}"))?;
                    Sink::File(file)
                }
            })
        };
        Ok(Self(Arc::new(targets.iter().map(open).collect::<Result<_>>()?)))
    }
}

impl<'a> MakeWriter<'a> for Sinks {
    type Writer = &'a Sinks;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Sinks {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut result = Ok(line.len());
        for sink in self.0.iter() {
            // One that fails must not keep the line from the others.
            let written = match sink {
                Sink::Stdout => io::stdout().lock().write_all(line),
                Sink::Stderr => io::stderr().lock().write_all(line),
                Sink::File(file) => (&*file).write_all(line),
            };
            if let Err(error) = written {
                result = Err(error);
            }
        }
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
