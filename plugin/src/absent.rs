//! What becomes of a pod while the agent does not answer: it passes when it is
//! certain to be outside the mesh and that could be written down; else it waits,
//! and is told why.

use std::cell::OnceCell;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use wire::cni::{Args, Config, Environment, Error, Hints};
use wire::code;
use wire::passed::{self, Passed};
use wire::snapshot::{Certainty, Doubt, Snapshot, Subject, Verdict};

use crate::run_dir::RunDir;

/// A pod, should it come to that.
pub(crate) struct Absent<'a> {
    run_dir: &'a str,
    args: &'a Args,
    hints: Hints,
    by_annotations: bool,
    judged: OnceCell<Judged>,
}

struct Judged {
    verdict: Verdict,
    /// Why there is no snapshot.
    lacks: Option<String>,
}

impl<'a> Absent<'a> {
    /// Reads nothing yet: most often the agent answers.
    pub(crate) fn new(config: &'a Config<'_>, args: &'a Args) -> Self {
        let judged = OnceCell::new();
        Self {
            run_dir: config.run_dir(),
            args,
            hints: config.hints(),
            by_annotations: config.agent_goes_by_annotations(),
            judged,
        }
    }

    /// What the runtime said of the pod.
    pub(crate) fn hints(&self) -> &Hints {
        &self.hints
    }

    /// The pod is certain to be outside the mesh.
    pub(crate) fn is_outside(&self) -> bool {
        matches!(self.judged().verdict, Verdict::Outside(_))
    }

    /// Lets the pod pass and says why, or says why it has to wait. `error` is what
    /// became of the question to the agent.
    ///
    /// # Errors
    /// `error` with the reason why the pod does not start without the agent, or
    /// [`code::RECORD_NOT_WRITTEN`].
    pub(crate) fn pass(
        &self,
        environment: &Environment,
        netns: &File,
        error: Error,
    ) -> Result<String, Error> {
        let certainty = match self.judged().verdict {
            Verdict::Outside(certainty) => certainty,
            Verdict::Wait(doubt) => return Err(self.explain(error, doubt)),
        };
        let reason = format!("{certainty}; {}", error.msg);
        let written = netns.metadata().and_then(|meta| {
            if self.by_annotations {
                RunDir::make(self.run_dir)?;
            }
            RunDir::open(self.run_dir)?.write_down(&Passed {
                version: passed::VERSION,
                container: environment.container_id.clone(),
                interface: environment.if_name.clone(),
                namespace: self.args.pod_namespace.clone(),
                name: self.args.pod_name.clone(),
                uid: self.args.pod_uid.clone(),
                netns: environment.netns.clone(),
                dev: meta.dev(),
                ino: meta.ino(),
                annotations: self.hints.annotations.clone(),
                reason: reason.clone(),
            })
        });
        match written {
            Ok(()) => Ok(reason),
            // Without it nobody would be there to look at anything.
            Err(_) if certainty == Certainty::OwnAgent => Ok(reason),
            Err(io) => Err(Error::new(
                code::RECORD_NOT_WRITTEN,
                format!(
                    "the pod is outside of the mesh and would pass without the agent, but that cannot be written down in {}/{}: {io} ({})",
                    self.run_dir,
                    passed::DIRECTORY,
                    error.msg
                ),
                format!(
                    "make room on the file system of the run directory, or bring the agent back: {}",
                    error.details
                ),
            )),
        }
    }

    fn explain(&self, error: Error, doubt: Doubt) -> Error {
        let lacks = match &self.judged().lacks {
            Some(why) => format!(" ({}/{}: {why})", self.run_dir, wire::snapshot::FILE_NAME),
            None => String::new(),
        };
        Error { msg: format!("{}; the pod is not started: {doubt}{lacks}", error.msg), ..error }
    }

    fn judged(&self) -> &Judged {
        self.judged.get_or_init(|| {
            let subject = Subject {
                namespace: &self.args.pod_namespace,
                name: &self.args.pod_name,
                uid: &self.args.pod_uid,
                annotations: self.hints.annotations.as_ref(),
            };
            match RunDir::open(self.run_dir).and_then(|directory| directory.snapshot()) {
                Ok(snapshot) => Judged { verdict: snapshot.judge(subject), lacks: None },
                // A node that has just booted, and not one whose agent wrote what
                // cannot be read.
                Err(error) if self.by_annotations && error.kind() == ErrorKind::NotFound => {
                    let verdict = Snapshot::of_annotations().judge(subject);
                    Judged { verdict, lacks: Some(error.to_string()) }
                }
                Err(error) => {
                    // What the runtime said is known by the plugin alone.
                    let doubt = match subject.is_injected() {
                        Some(true) => Doubt::Injected,
                        _ => Doubt::NoSnapshot,
                    };
                    Judged { verdict: Verdict::Wait(doubt), lacks: Some(error.to_string()) }
                }
            }
        })
    }
}
