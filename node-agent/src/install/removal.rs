//! Taking ourselves out of a node. Only an explicit command does it.

use super::action::{Action, Permissions};
use super::candidate::{Kind, Snapshot};
use super::file::{self, FileError};
use super::outcome::InstallError;
use super::plan::{Directory, PlanError};
use super::{Mode, Settings, directory};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// File of the run directory that says that the mesh was removed from the node: a
/// runtime that has not read the new configuration yet may still run the plugin,
/// which then lets every pod pass. Holds [`Settings::installation`].
pub(crate) const REMOVED: &str = "removed";

/// File of the run directory that [`Hold`] is a lock on. Not the mark itself: that is
/// replaced when it is set.
const HOLD: &str = "removed.lock";

/// What Istio's own install leaves, of which two hold a credential.
const LEFTOVERS: [&str; 2] = ["istio-cni-kubeconfig", "istio-cni.log"];
/// And what very old ones left in the net directory.
const OLD_LEFTOVER: &str = "ZZZ-istio-cni-kubeconfig";
/// Looks in a row when files change between look and write.
const LOOKS: usize = 10;

/// What a removal did.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    /// Files of the net directory that were restored or removed.
    pub(crate) changed: Vec<String>,
    /// The plugin's binary, which stays: see [`super::remove_binary`].
    pub(crate) binary: Option<PathBuf>,
    /// What could not be done.
    pub(crate) errors: Vec<InstallError>,
}

/// Takes us out of the CNI configuration, whatever the mode was: files of ours are
/// removed, others' restored byte for byte. May be repeated, and run with or without
/// an agent on the node; one that runs sees the mark and stops putting us back.
/// Goes on past errors.
pub(crate) fn remove(settings: &Settings) -> Removal {
    let mut removal = Removal::default();
    // First, so that a running installer does not undo the rest.
    if let Err(error) = Marker::of(&settings.run_dir).set(&settings.installation) {
        removal.errors.push(error.into());
    }
    take_out(settings, &mut removal);
    discard_leftovers(settings);
    let binary = settings.bin_dir.join(super::entry::TYPE);
    removal.binary = binary.exists().then_some(binary);
    removal
}

/// Takes us out, however often a file changes between look and write.
pub(super) fn take_out(settings: &Settings, removal: &mut Removal) {
    for _ in 0..LOOKS {
        match look_and_take_out(settings, removal) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => return removal.errors.push(error.into()),
        }
    }
    removal.errors.push(InstallError::Restless);
}

/// One look; false when a file changed since.
fn look_and_take_out(settings: &Settings, removal: &mut Removal) -> Result<bool, FileError> {
    let files = match directory::look(&settings.net_dir, settings.conf_name.as_deref()) {
        Ok(files) => files,
        // No directory, nothing of ours in it.
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut complete = true;
    for planned in actions(&files, &settings.mode) {
        let action = match planned {
            Ok(action) => action,
            Err(error) => {
                removal.errors.push(error.into());
                continue;
            }
        };
        match directory::perform(&settings.net_dir, &action) {
            Ok(true) => {}
            Ok(false) => {
                complete = false;
                continue;
            }
            Err(error) => {
                removal.errors.push(error.into());
                continue;
            }
        }
        let name = action.name();
        if !removal.changed.iter().any(|changed| changed == name) {
            removal.changed.push(name.to_owned());
        }
    }
    Ok(complete)
}

/// What takes us out. Files of ours go last: until then the chain that is loaded
/// has us, and then it is the primary's own.
pub(super) fn actions(files: &Snapshot, mode: &Mode) -> Vec<Result<Action, PlanError>> {
    let found = Directory::new(files, mode);
    let mut actions = Vec::new();
    for (name, primary) in found.primaries() {
        match found.undo(name, primary) {
            Ok(undo) => actions.extend(undo.into_iter().map(Ok)),
            Err(error) => actions.push(Err(error)),
        }
    }
    let ours = found.kinds.iter().filter(|(_, k)| matches!(k, Kind::Owned(_) | Kind::Standalone));
    actions.extend(ours.map(|(name, _)| Ok(found.removal(name))));
    actions
}

/// Removes what Istio's own install left on the host, once ours is in place or all
/// is taken out.
pub(super) fn discard_leftovers(settings: &Settings) {
    let leftovers = LEFTOVERS.map(|name| settings.run_dir.join(name));
    for path in leftovers.iter().chain([&settings.net_dir.join(OLD_LEFTOVER)]) {
        match file::discard(path) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(file = %path.display(), "removed what Istio's installer left");
            }
            Err(error) => {
                let reason = crate::failure::causes(&error);
                tracing::warn!(%reason, "what Istio's installer left stays");
            }
        }
    }
}

/// Keeps agents that start from installing, for as long as it lives: the kernel lets go
/// of it with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Hold(#[expect(dead_code, reason = "the lock is what it is for")] fs::File);

impl Hold {
    /// Of the node with this run directory; any number of them at once.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub(crate) fn take(run_dir: &Path) -> Result<Self, FileError> {
        fs::create_dir_all(run_dir).map_err(FileError::at("create", run_dir))?;
        let path = run_dir.join(HOLD);
        let file = open_hold(&path).map_err(FileError::at("open", &path))?;
        file.lock_shared().map_err(FileError::at("lock", &path))?;
        Ok(Self(file))
    }

    /// Somebody has it. What cannot be told counts as nobody.
    pub(super) fn is_held(run_dir: &Path) -> bool {
        let Ok(file) = fs::File::open(run_dir.join(HOLD)) else { return false };
        matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock))
    }
}

fn open_hold(path: &Path) -> std::io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).truncate(false).mode(0o600).open(path)
}

/// The mark of a removal.
pub(super) struct Marker(PathBuf);

impl Marker {
    pub(super) fn of(run_dir: &Path) -> Self {
        Self(run_dir.join(REMOVED))
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.exists()
    }

    /// True when it was set for this very installation.
    pub(super) fn is_of(&self, installation: &str) -> bool {
        !installation.is_empty()
            && fs::read_to_string(&self.0).is_ok_and(|text| text.trim_end() == installation)
    }

    pub(super) fn clear(&self) {
        if let Err(error) = file::discard(&self.0) {
            let reason = crate::failure::causes(&error);
            tracing::error!(%reason, "the mark of an earlier removal cannot be removed, so that nothing is installed");
        }
    }

    fn set(&self, installation: &str) -> Result<(), FileError> {
        if let Some(run_dir) = self.0.parent() {
            fs::create_dir_all(run_dir).map_err(FileError::at("create", run_dir))?;
        }
        let permissions = Permissions { mode: 0o600, owner: None };
        file::put(&self.0, &mut format!("{installation}\n").as_bytes(), permissions)
    }
}
