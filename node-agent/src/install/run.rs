//! The installer's loop.

use super::action::Action;
use super::binary::Binaries;
use super::candidate::Snapshot;
use super::contest::{Contest, Rate};
use super::entry::{PluginEntry, TYPE};
use super::outcome::{InstallError, Outcome, Progress};
use super::plan::{Memory, Plan, State, Want, plan};
use super::removal::{Hold, Marker, Removal, discard_leftovers, take_out};
use super::watch::{Wake, Watcher};
use super::{InstallEvent, Readiness, Settings, SettingsError, directory, file};
use crate::failure::causes;
use std::collections::BTreeMap;
use std::io::PipeReader;
use std::time::{Duration, Instant};
use tokio::sync::watch::Sender;

/// Looks in a row when files change between look and write.
const LOOKS: usize = 5;
/// How long nobody may hold the node down until it is free: longer than an
/// uninstallation takes from the end of its hold to the end of its agents.
const QUIET: Duration = Duration::from_secs(10);

/// Installs the plugin and keeps it installed.
#[derive(Debug)]
pub(crate) struct Installer {
    settings: Settings,
    want: Want,
    memory: Memory,
    absent_since: Option<Instant>,
    binaries: Binaries,
    /// What was written last to each file.
    written: BTreeMap<String, String>,
    rate: Rate,
    contest: Contest,
    /// The agent started under somebody's [`Hold`], and installs when it is over.
    returning: Option<Returning>,
}

/// Waits for a node to be free.
#[derive(Debug, Default)]
struct Returning {
    free_since: Option<Instant>,
}

impl Installer {
    /// With settings that can work.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot.
    pub(crate) fn new(mut settings: Settings, entry: PluginEntry) -> Result<Self, SettingsError> {
        settings.conf_name = settings.conf_name.filter(|name| !name.is_empty());
        settings.check()?;
        let want = Want {
            mode: settings.mode.clone(),
            conf_name: settings.conf_name.clone(),
            file_mode: if settings.group_read { 0o640 } else { 0o600 },
            entry,
        };
        Ok(Self {
            binaries: Binaries::new(&settings.binaries, &settings.bin_dir),
            want,
            memory: Memory::default(),
            absent_since: None,
            written: BTreeMap::new(),
            rate: Rate::new(Instant::now()),
            contest: Contest::default(),
            returning: None,
            settings,
        })
    }

    /// Runs until the other end of `stop` is dropped. Blocks: give it a thread.
    /// Ending takes nothing back.
    pub(crate) fn run(
        mut self,
        stop: &PipeReader,
        ready: &Sender<Readiness>,
        on_event: impl Fn(InstallEvent),
    ) {
        let marker = Marker::of(&self.settings.run_dir);
        if !marker.is_of(&self.settings.installation) {
            if Hold::is_held(&self.settings.run_dir) {
                self.returning = Some(Returning::default());
            } else {
                marker.clear();
            }
        }
        let names = self.binaries.names();
        let mut watcher = Watcher::new(&self.settings.net_dir, &self.settings.bin_dir, names);
        let mut progress = Progress::default();
        loop {
            let mut changed = false;
            on_event(InstallEvent::Looks);
            let outcome = self.pass(&mut watcher, &mut changed, &on_event);
            let delay = progress.report(outcome, changed, ready, &on_event);
            let paused = watcher.pause(stop, delay.pause);
            let wake = if delay.watch.is_zero() { paused } else { watcher.wait(stop, delay.watch) };
            if paused == Wake::Stop || wake == Wake::Stop {
                return;
            }
        }
    }

    /// Looks, and makes right what is wrong.
    fn pass(
        &mut self,
        watcher: &mut Watcher,
        changed: &mut bool,
        on_event: &impl Fn(InstallEvent),
    ) -> Result<Outcome, InstallError> {
        if let Some(outcome) = self.given_up() {
            return Ok(outcome);
        }
        watcher.arm(std::iter::empty());
        file::sweep(&self.settings.net_dir, &[]);
        file::sweep(&self.settings.bin_dir, &self.binaries.names());
        let (copied, result) = self.binaries.install();
        for name in copied {
            *changed = true;
            tracing::info!(file = %self.settings.bin_dir.join(name).display(), "installed the plugin's binary");
        }
        if !self.binaries.is_there(TYPE) {
            result?;
            return Err(InstallError::NoBinary(TYPE));
        }
        // With an older binary in place the configuration is followed all the same.
        let outcome = self.configure(watcher, changed, on_event);
        result?;
        outcome
    }

    /// Whether the node is given up. An uninstallation ends with the agents: one that was
    /// started again in the middle of it must not install between the hold's end and its
    /// own.
    fn given_up(&mut self) -> Option<Outcome> {
        let marker = Marker::of(&self.settings.run_dir);
        let is_held = Hold::is_held(&self.settings.run_dir);
        if !marker.is_there() {
            if !is_held {
                self.returning = None;
            }
            return None;
        }
        let Some(returning) = &mut self.returning else { return Some(Outcome::Removed) };
        if is_held {
            returning.free_since = None;
            return Some(Outcome::Held);
        }
        if returning.free_since.get_or_insert_with(Instant::now).elapsed() < QUIET {
            return Some(Outcome::Held);
        }
        tracing::info!("nobody cleans this node up any more, installing");
        marker.clear();
        self.returning = None;
        None
    }

    fn configure(
        &mut self,
        watcher: &mut Watcher,
        changed: &mut bool,
        on_event: &impl Fn(InstallEvent),
    ) -> Result<Outcome, InstallError> {
        for _ in 0..LOOKS {
            let files = directory::look(&self.settings.net_dir, self.want.conf_name.as_deref())?;
            watcher.arm(files.iter().filter(|(_, file)| file.link).map(|(name, _)| name.clone()));
            let now = Instant::now();
            self.note_absence(&files, now);
            let Plan { actions, state, known } = plan(&files, &self.want, &self.memory)?;
            if !actions.is_empty() {
                if let Err(time) = self.rate.take(now) {
                    return Ok(Outcome::Later(time));
                }
                let done = self.perform(&files, &actions, changed, on_event)?;
                // It may have come between the look and the write: then we must not
                // be what puts us back.
                if Marker::of(&self.settings.run_dir).is_there() {
                    return Ok(self.retreat());
                }
                if !done {
                    continue;
                }
            }
            let (old, new) = (&self.memory.known, &known);
            if let (Some(old), Some(new)) = (old, new)
                && old.name != new.name
            {
                tracing::info!(from = %old.name, to = %new.name, "follow another CNI configuration");
            }
            self.memory.known = known;
            if matches!(state, State::Complete | State::Preempted(_)) {
                discard_leftovers(&self.settings);
            }
            return Ok(Outcome::Settled(state));
        }
        // Others are writing right now; the kernel tells when.
        Ok(Outcome::Later(Duration::from_millis(20)))
    }

    /// Takes out what was written over a removal.
    fn retreat(&self) -> Outcome {
        let mut removal = Removal::default();
        take_out(&self.settings, &mut removal);
        for error in removal.errors {
            let reason = causes(&error);
            tracing::error!(%reason, "cannot take istio-cni out again");
        }
        Outcome::Removed
    }

    /// For how long the primary's file has been gone.
    fn note_absence(&mut self, files: &Snapshot, now: Instant) {
        let gone = self.memory.known.as_ref().is_some_and(|known| !files.contains_key(&known.name));
        self.absent_since = if gone { self.absent_since.or(Some(now)) } else { None };
        let since = self.absent_since.map(|since| now.saturating_duration_since(since));
        self.memory.absent_for = since.unwrap_or_default();
    }

    /// Performs a plan; false when a file changed since the look.
    fn perform(
        &mut self,
        files: &Snapshot,
        actions: &[Action],
        changed: &mut bool,
        on_event: &impl Fn(InstallEvent),
    ) -> Result<bool, InstallError> {
        for action in actions {
            if !directory::perform(&self.settings.net_dir, action)? {
                return Ok(false);
            }
            *changed = true;
            match action {
                Action::Write { name, text, .. }
                | Action::Create { name, text, .. }
                | Action::Replace { name, text, .. } => {
                    let path = self.settings.net_dir.join(name);
                    // The same bytes as before: nothing but the file itself was wrong.
                    if self.written.get(name) == Some(text) {
                        self.note_repair(files, name, on_event);
                    } else {
                        tracing::info!(file = %path.display(), "wrote the CNI configuration");
                    }
                    self.written.insert(name.clone(), text.clone());
                }
                Action::Remove { name, .. } => {
                    let path = self.settings.net_dir.join(name);
                    tracing::info!(file = %path.display(), "removed a CNI configuration that was replaced");
                }
                Action::Chmod { name, mode } => {
                    let path = self.settings.net_dir.join(name);
                    tracing::info!(file = %path.display(), mode = format!("{mode:o}"), "set the mode of the CNI configuration");
                }
            }
        }
        Ok(true)
    }

    fn note_repair(&mut self, files: &Snapshot, name: &str, on_event: &impl Fn(InstallEvent)) {
        let path = self.settings.net_dir.join(name);
        tracing::info!(file = %path.display(), "another program changed the CNI configuration, put istio-cni back");
        on_event(InstallEvent::Repaired { file: name.to_owned() });
        if let Some(times) = self.contest.repaired(Instant::now()) {
            let hint = if files.keys().any(|name| name.contains("cilium")) {
                "Cilium removes others' files: set its cni.exclusive to false"
            } else {
                "stop the program that writes or removes this file, or make it leave istio-cni in"
            };
            tracing::warn!(file = %path.display(), times, "another program takes istio-cni out again and again; pods that start in between are not in the mesh: {hint}");
            on_event(InstallEvent::Contested { file: name.to_owned(), times });
        }
    }
}
