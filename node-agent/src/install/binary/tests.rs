//! By content.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn copies_what_differs_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&target).unwrap();
    let mut binaries = Binaries::new(&source, &target);
    assert!(matches!(binaries.install().1, Err(CopyError::Empty(_))));
    let big: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(source.join("a"), &big).unwrap();
    fs::set_permissions(source.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(source.join("b"), "b").unwrap();
    fs::create_dir(source.join("directory")).unwrap();
    let (mut copied, result) = binaries.install();
    copied.sort();
    result.unwrap();
    assert_eq!(copied, ["a", "b"]);
    assert_eq!(fs::read(target.join("a")).unwrap(), big);
    assert!(binaries.is_there("a") && !binaries.is_there("b") && !binaries.is_there("c"));
    assert_eq!(binaries.install().0, Vec::<String>::new());
    assert_eq!(Binaries::new(&source, &target).install().0, Vec::<String>::new());

    // The same length and another byte, at the very end.
    let mut other = big.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(target.join("a"), &other).unwrap();
    assert_eq!(binaries.install().0, ["a"]);
    // A link is replaced, not followed.
    let elsewhere = dir.path().join("elsewhere");
    fs::write(&elsewhere, &big).unwrap();
    fs::remove_file(target.join("a")).unwrap();
    symlink(&elsewhere, target.join("a")).unwrap();
    fs::write(source.join("a"), &other).unwrap();
    assert_eq!(binaries.install().0, ["a"]);
    assert_eq!(fs::read(&elsewhere).unwrap(), big);
    assert!(fs::symlink_metadata(target.join("a")).unwrap().is_file());
}
