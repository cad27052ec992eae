//! Whole or not at all, and never over what another wrote meanwhile.

use super::*;
use std::sync::atomic::AtomicBool;

const PERMISSIONS: Permissions = Permissions { mode: 0o600, owner: None };

#[test]
fn replaces_only_what_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    assert!(!replace(&path, "x", "y", PERMISSIONS).unwrap());
    fs::write(&path, "x").unwrap();
    assert!(!replace(&path, "other", "y", PERMISSIONS).unwrap());
    assert!(replace(&path, "x", "y", PERMISSIONS).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "y");
    assert!(!remove(&path, "x").unwrap());
    assert!(remove(&path, "y").unwrap());
    assert!(!remove(&path, "y").unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A writer that renames new content in place all the time: each replacement of
/// ours is either refused, or was of the content that we saw; what it wrote last
/// is there at the end.
#[test]
fn loses_nothing_that_another_wrote_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, "0").unwrap();
    let done = AtomicBool::new(false);
    let last = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let seen = fs::read_to_string(&path).unwrap();
                if !seen.ends_with('+') {
                    // Too many swaps in a row are an error, and nothing lost.
                    let _ = replace(&path, &seen, &format!("{seen}+"), PERMISSIONS);
                }
            }
        });
        let mut n: u64 = 0;
        let end = std::time::Instant::now() + Duration::from_secs(2);
        while std::time::Instant::now() < end {
            n += 1;
            let temporary = dir.path().join("new");
            fs::write(&temporary, n.to_string()).unwrap();
            fs::rename(temporary, &path).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        n
    });
    let found = fs::read_to_string(&path).unwrap();
    assert_eq!(found.trim_end_matches('+'), last.to_string());
}

/// The same for removal and creation: two that make and remove one file.
#[test]
fn removes_and_creates_only_what_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    assert!(create(&path, "x", PERMISSIONS).unwrap());
    assert!(!create(&path, "y", PERMISSIONS).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    fs::remove_file(&path).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Removes what is odd, and nothing else.
                if let Ok(seen) = fs::read_to_string(&path) {
                    let odd = seen.parse::<u64>().is_ok_and(|n| n % 2 == 1);
                    if odd {
                        remove(&path, &seen).unwrap();
                    }
                }
            }
        });
        let end = std::time::Instant::now() + Duration::from_secs(2);
        let mut n: u64 = 0;
        while std::time::Instant::now() < end {
            n += 1;
            let temporary = dir.path().join("new");
            fs::write(&temporary, n.to_string()).unwrap();
            fs::rename(temporary, &path).unwrap();
            if n.is_multiple_of(1000) {
                // It may be away while it is looked at, and must come back.
                let limit = std::time::Instant::now() + Duration::from_secs(60);
                while !fs::read_to_string(&path).is_ok_and(|found| found == n.to_string()) {
                    assert!(std::time::Instant::now() < limit, "{n} was removed");
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
