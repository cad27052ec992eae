//! What the files of a process tell: whose it is by its cgroups, and since when it runs.

/// Field 22 of `stat`, counted after the command's name.
const START_TIME: usize = 19;

/// When a process started, by its `stat`.
pub(super) fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(START_TIME)?.parse().ok()
}

/// Whose a process is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Belonging {
    /// Of its pod.
    pub(super) uid: Option<String>,
    /// Its container's name.
    pub(super) container: Option<String>,
}

/// Reads a process' cgroups. What is contradictory says nothing.
pub(super) fn belonging(text: &str) -> Belonging {
    let mut found = Belonging::default();
    for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        let path = path.strip_suffix(".scope").unwrap_or(path);
        let Some(uid) = pod_uid(path) else { continue };
        let container = container(path);
        let differs =
            |known: &Option<String>, new: &str| known.as_deref().is_some_and(|k| k != new);
        if differs(&found.uid, &uid)
            || container.as_ref().is_some_and(|new| differs(&found.container, new))
        {
            return Belonging::default();
        }
        found.uid = Some(uid);
        found.container = found.container.or(container);
    }
    found
}

/// `pod`, then a uid whose parts are joined by `-` or, with systemd, by `_`. A
/// static pod's is a hash without parts.
fn pod_uid(path: &str) -> Option<String> {
    path.split('/').find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = match part.strip_prefix("pod") {
            Some(uid) => uid,
            None => part.rsplit_once("-pod")?.1,
        };
        let uid = uid.replace('_', "-");
        let hex = uid.bytes().filter(|b| *b != b'-').count();
        let valid = uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        (valid && hex == 32).then_some(uid)
    })
}

/// The last part, without the runtime's name before it.
fn container(path: &str) -> Option<String> {
    let last = path.rsplit('/').next()?;
    let last = last.rsplit(['-', ':']).next()?;
    let valid = last.len() >= 32 && last.bytes().all(|b| b.is_ascii_hexdigit());
    (valid && pod_uid(path.rsplit('/').next()?).is_none()).then(|| last.to_owned())
}
