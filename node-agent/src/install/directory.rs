//! Looking at the CNI directory, and changing it.

use super::action::Action;
use super::candidate::{EXTENSIONS, File, Snapshot};
use super::file::{self, FileError};
use nix::fcntl::OFlag;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bytes that a configuration may have; real ones have a few thousand.
const MAX_SIZE: u64 = 4 << 20;

/// Reads every file that a runtime would look at, and the one that is configured,
/// whatever its extension.
pub(super) fn look(directory: &Path, configured: Option<&str>) -> Result<Snapshot, FileError> {
    let mut files = Snapshot::new();
    let entries = fs::read_dir(directory).map_err(FileError::at("read directory", directory))?;
    for entry in entries {
        let entry = entry.map_err(FileError::at("read directory", directory))?;
        // Runtimes print names into JSON and logs; one that is not UTF-8 is nobody's.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_loaded = EXTENSIONS.iter().any(|extension| name.ends_with(extension));
        if !is_loaded && configured != Some(name.as_str()) {
            continue;
        }
        // Gone again since: not there.
        if let Some(file) = read(directory, &name) {
            files.insert(name, file);
        }
    }
    Ok(files)
}

fn read(directory: &Path, name: &str) -> Option<File> {
    let path = directory.join(name);
    let meta = fs::symlink_metadata(&path).ok()?;
    if meta.is_dir() {
        return None;
    }
    let link = meta.is_symlink();
    let file = |content| File {
        content,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        link,
        folder: None,
    };
    match text(&path) {
        Ok(text) => {
            let folder = folder(directory, name, &text);
            Some(File { folder, ..file(Ok(text)) })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !link => None,
        Err(error) => Some(file(Err(error.to_string()))),
    }
}

fn text(path: &Path) -> io::Result<String> {
    // A pipe must not block the installer.
    let mut options = OpenOptions::new();
    let open = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !open.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    open.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("it is larger than {MAX_SIZE} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// The folder `<directory>/<network>` of a list, when it has plugins in it.
fn folder(directory: &Path, name: &str, text: &str) -> Option<String> {
    if !name.ends_with(".conflist") {
        return None;
    }
    let list = super::conflist::List::parse(text).ok()?;
    let network = Path::new(list.name());
    // A name with a slash in it names no folder of this directory.
    if network.components().count() != 1 || network.file_name().is_none() {
        return None;
    }
    let path = directory.join(network);
    let entries = fs::read_dir(&path).ok()?;
    let plugin = |entry: fs::DirEntry| entry.path().extension().is_some_and(|e| e == "conf");
    entries.flatten().any(plugin).then(|| path.display().to_string())
}

/// Performs one action; false when the file changed since the look.
pub(super) fn perform(directory: &Path, action: &Action) -> Result<bool, FileError> {
    match action {
        Action::Write { name, text, permissions } => {
            file::put(&directory.join(name), &mut text.as_bytes(), *permissions).map(|()| true)
        }
        Action::Create { name, text, permissions } => {
            file::create(&directory.join(name), text, *permissions)
        }
        Action::Replace { name, old, text, permissions } => {
            file::replace(&directory.join(name), old, text, *permissions)
        }
        Action::Chmod { name, mode } => file::chmod(&directory.join(name), *mode).map(|()| true),
        Action::Remove { name, old: Some(old) } => file::remove(&directory.join(name), old),
        Action::Remove { name, old: None } => file::discard(&directory.join(name)).map(|_| true),
    }
}
