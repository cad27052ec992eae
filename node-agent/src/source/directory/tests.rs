use super::*;
use std::fs;

fn pod(name: &str, uid: &str) -> String {
    format!(
        "---\nkind: Pod\nmetadata: {{name: {name}, namespace: n, uid: '{uid}'}}\nspec: {{containers: [{{name: istio-proxy}}]}}\n"
    )
}

fn wait(directory: &Directory, name: &str, uid: &str, ms: u64) -> Result<Found, Missing> {
    let wanted = Wanted { namespace: "n", name, uid };
    directory.wait(wanted, Instant::now() + Duration::from_millis(ms))
}

/// Until it holds, at most a minute.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn follows_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    fs::write(file("a.yaml"), pod("a", "1")).unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    assert!(wait(&directory, "a", "", 30_000).is_ok(), "there from the start");
    assert_eq!(wait(&directory, "b", "", 0).unwrap_err(), Missing::Unknown);

    // Comes while it is waited for.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&directory, "b", "", 30_000));
        fs::write(file("b.yaml"), pod("b", "2")).unwrap();
        assert!(waiting.join().unwrap().is_ok());
    });

    // Renamed into place, as careful tools write.
    fs::write(file(".c"), pod("c", "3")).unwrap();
    fs::rename(file(".c"), file("c.yaml")).unwrap();
    assert!(wait(&directory, "c", "", 30_000).is_ok());

    fs::remove_file(file("a.yaml")).unwrap();
    eventually("a is gone", || wait(&directory, "a", "", 0).is_err());
    fs::rename(file("c.yaml"), file("c.off")).unwrap();
    eventually("c is gone", || wait(&directory, "c", "", 0).is_err());

    // A mounted ConfigMap: links that do not change, a directory that does.
    fs::create_dir(file("..1")).unwrap();
    fs::write(file("..1/d.yaml"), pod("d", "4")).unwrap();
    std::os::unix::fs::symlink("..1", file("..data")).unwrap();
    std::os::unix::fs::symlink("..data/d.yaml", file("d.yaml")).unwrap();
    assert!(wait(&directory, "d", "4", 30_000).is_ok());
    fs::create_dir(file("..2")).unwrap();
    fs::write(file("..2/d.yaml"), pod("d", "5")).unwrap();
    std::os::unix::fs::symlink("..2", file("..data_tmp")).unwrap();
    fs::rename(file("..data_tmp"), file("..data")).unwrap();
    assert!(wait(&directory, "d", "5", 30_000).is_ok());
}

#[test]
fn a_pod_stays_while_its_file_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let both = pod("a", "1") + &pod("b", "2");
    fs::write(&path, &both).unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    assert!(wait(&directory, "b", "", 30_000).is_ok());

    use std::io::Write;
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(pod("a", "1").as_bytes()).unwrap();
    file.flush().unwrap();
    // Longer than a file has to rest: a lookup that misses looks at the files too.
    assert!(wait(&directory, "other", "", 500).is_err());
    assert!(wait(&directory, "b", "", 0).is_ok(), "its writer is not done");
    file.write_all(pod("b", "3").as_bytes()).unwrap();
    drop(file);
    eventually("the new b", || wait(&directory, "b", "3", 0).is_ok());

    for broken in ["", "kind: Pod\nmetadata: {name: [", "\u{0}\u{1}", "--- just text"] {
        fs::write(&path, broken).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(wait(&directory, "b", "3", 0).is_ok(), "{broken:?}");
        // Good enough to be captured by, not to be known to be outside the mesh.
        assert!(directory.all().0.iter().all(|pod| pod.name != "b"), "{broken:?}");
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(wait(&directory, "b", "3", 0).is_ok());
    fs::write(&path, pod("a", "9")).unwrap();
    eventually("b is gone", || wait(&directory, "b", "", 0).is_err());
}

#[test]
fn half_a_file_that_is_whole_yaml_is_not_believed() {
    use std::io::Write;
    // A machine that stands still for as long as a file has to rest proves nothing.
    let in_time = (0..100).any(|_| {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let mut file = fs::File::create(dir.path().join("a.yaml")).unwrap();
        let begun = Instant::now();
        file.write_all(
            b"kind: Pod\nmetadata: {name: a, namespace: n}\nspec:\n  containers:\n  - name: app\n",
        )
        .unwrap();
        file.flush().unwrap();
        let found = wait(&directory, "a", "", 120);
        if begun.elapsed() >= SETTLED - Duration::from_millis(20) {
            return false;
        }
        assert!(found.is_err());
        file.write_all(b"  - name: istio-proxy\n").unwrap();
        drop(file);
        let both = || wait(&directory, "a", "", 0).is_ok_and(|a| a.pod.containers.len() == 2);
        eventually("both containers", both);
        true
    });
    assert!(in_time, "never within {SETTLED:?}");
}

#[test]
fn tells_a_pod_from_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a", "1")).unwrap();
    fs::write(
        dir.path().join("ns.json"),
        r#"{"kind":"Namespace","metadata":{"name":"n","labels":{"x":"y"}}}"#,
    )
    .unwrap();
    let static_pod = "kind: Pod\nmetadata: {name: s, namespace: n, uid: api, annotations: {kubernetes.io/config.hash: file}}\nspec: {containers: [{name: c}]}\n";
    fs::write(dir.path().join("s.yml"), static_pod).unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    eventually("all read", || directory.count() == (2, 1));
    assert_eq!(wait(&directory, "a", "2", 0).unwrap_err(), Missing::OtherUid("1".into()));
    assert_eq!(wait(&directory, "a", "1", 0).unwrap().namespace.unwrap().labels["x"], "y");
    assert!(wait(&directory, "s", "file", 0).is_ok(), "a static pod has two uids");
    assert!(wait(&directory, "s", "other", 0).is_err());
}

#[test]
fn says_which_directory_is_wrong() {
    let error = Directory::open(Path::new("/nonexistent/pods")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/pods"), "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(Directory::open(file.path()).is_err());
}

#[test]
fn outlives_its_directory() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("pods");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), pod("a", "1")).unwrap();
    let directory = Directory::open(&path).unwrap();
    assert!(wait(&directory, "a", "", 30_000).is_ok());
    fs::rename(&path, parent.path().join("old")).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(wait(&directory, "a", "", 0).is_ok(), "kept while the directory is gone");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("b.yaml"), pod("b", "2")).unwrap();
    eventually("b of the new one", || wait(&directory, "b", "", 0).is_ok());
    eventually("a is gone", || wait(&directory, "a", "", 0).is_err());
    fs::remove_dir_all(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("c.yaml"), pod("c", "3")).unwrap();
    eventually("c", || wait(&directory, "c", "", 0).is_ok());
}

/// Its last write was announced to nobody, and when the directory is looked at it is too
/// fresh to be believed.
#[test]
fn a_file_that_comes_with_a_new_directory_is_read() {
    let parent = tempfile::tempdir().unwrap();
    let [path, old, new] = ["pods", "old", "new"].map(|name| parent.path().join(name));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), pod("a", "1")).unwrap();
    let directory = Directory::open(&path).unwrap();
    eventually("a", || wait(&directory, "a", "", 0).is_ok());
    fs::create_dir(&new).unwrap();
    fs::write(new.join("b.yaml"), pod("b", "2")).unwrap();
    fs::rename(&path, &old).unwrap();
    fs::rename(&new, &path).unwrap();
    eventually("b", || wait(&directory, "b", "", 0).is_ok());
}
