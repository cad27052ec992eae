use super::*;
use std::sync::mpsc::{Receiver, channel};

fn name(name: &str) -> PodName {
    PodName { namespace: "n".to_owned(), name: name.to_owned() }
}

fn write(dir: &std::path::Path, file: &str, text: &str) {
    let hidden = dir.join(format!(".{file}"));
    std::fs::write(&hidden, text).unwrap();
    std::fs::rename(hidden, dir.join(file)).unwrap();
}

fn next(changes: &Receiver<Change>) -> Change {
    changes.recv_timeout(Duration::from_secs(60)).unwrap()
}

#[test]
fn a_directory_tells_what_changes() {
    let dir = tempfile::tempdir().unwrap();
    let pod = |image: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: a, namespace: n, uid: u, labels: {{v: '{image}'}}}}\nspec: {{serviceAccountName: s, containers: [{{name: c, livenessProbe: {{tcpSocket: {{port: 80}}}}}}]}}\n"
        )
    };
    write(dir.path(), "a.yaml", &pod("1"));
    let directory = Directory::open(dir.path()).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while directory.count().0 == 0 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    let (sender, changes) = channel();
    let followed = Arc::clone(&directory);
    let thread = std::thread::spawn(move || {
        follow_directory(&followed, move |change| sender.send(change).is_ok());
    });
    let Change::Pod(told) = next(&changes) else { panic!() };
    assert_eq!((told.uid().as_str(), told.name()), ("u", name("a")));
    assert_eq!(&*told.workload().service_account, "s");
    assert_eq!(*told.workload().probe_ports, [80]);
    assert!(matches!(next(&changes), Change::Complete));

    // The namespace decides, too.
    write(dir.path(), "n.yaml", "kind: Namespace\nmetadata: {name: n, labels: {x: y}}\n");
    let Change::Pod(_) = next(&changes) else { panic!() };
    write(dir.path(), "a.yaml", &pod("2"));
    let Change::Pod(told) = next(&changes) else { panic!() };
    assert_eq!(told.facts().labels["v"], "2");
    // What cannot be read says nothing.
    write(dir.path(), "a.yaml", "kind: [");
    assert!(changes.recv_timeout(Duration::from_millis(300)).is_err());
    assert!(directory.told(&name("a")).is_some());
    std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert!(matches!(next(&changes), Change::Gone(gone) if gone == name("a")));
    drop(changes);
    write(dir.path(), "a.yaml", &pod("3"));
    thread.join().unwrap();
}

/// Whoever hears that this is all takes other pods for gone.
#[test]
fn a_manifest_that_is_too_fresh_to_be_read_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "a.yaml",
        "kind: Pod\nmetadata: {name: a, namespace: n}\nspec: {containers: [{name: c}]}\n",
    );
    let directory = Directory::open(dir.path()).unwrap();
    let (sender, changes) = channel();
    std::thread::spawn(move || {
        follow_directory(&directory, move |change| sender.send(change).is_ok());
    });
    let Change::Pod(told) = next(&changes) else { panic!("the pod comes first") };
    assert_eq!(told.name(), name("a"));
    assert!(matches!(next(&changes), Change::Complete));
}
