use super::*;

fn subject(name: &str) -> Subject {
    Subject {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        over: false,
        condition: None,
    }
}

fn board() -> Board {
    Board { conditions: true, events: true, ..Board::default() }
}

fn stuck(trouble: Trouble) -> State {
    State::Stuck(trouble, "no".to_owned())
}

/// Says everything that is due, at one moment: names, and whether as Event and condition.
fn say(board: &mut Board, now: Instant) -> Vec<(String, State, bool, bool)> {
    let mut said = Vec::new();
    while let Some(telling) = board.next(now) {
        board.said(&telling, telling.event, telling.condition, now);
        let Telling { subject, state, event, condition } = telling;
        said.push((subject.name, state, event, condition));
        assert!(said.len() < 100, "said again and again: {said:?}");
    }
    said
}

#[test]
fn trouble_is_said_once_and_its_end_once() {
    let (mut board, begin) = (board(), Instant::now());
    let at = |seconds| begin + Duration::from_secs(seconds);
    assert!(!board.set(subject("a"), State::Well, begin), "nothing was ever wrong");
    assert!(board.is_empty());
    let state = stuck(Trouble::Rules);
    assert!(board.set(subject("a"), state.clone(), begin));
    assert_eq!(board.stuck()[&Trouble::Rules], 1);
    assert_eq!(say(&mut board, begin), [("a".to_owned(), state, true, true)]);
    // The words of the same trouble may differ each time.
    let again = State::Stuck(Trouble::Rules, "no, again".to_owned());
    assert!(!board.set(subject("a"), again.clone(), at(20)));
    assert_eq!(say(&mut board, at(20)), []);
    let later = at(20) + REPEAT;
    assert_eq!(say(&mut board, later), [("a".to_owned(), again, true, false)], "Events expire");
    assert!(board.set(subject("a"), State::Well, later));
    assert_eq!(say(&mut board, later), [], "not at once");
    let well = [("a".to_owned(), State::Well, true, true)];
    assert_eq!(say(&mut board, later + GAP), well);
    board.tidy(later + GAP);
    assert!(!board.is_empty(), "the pod's own condition may be read late");
    board.tidy(later + GAP + GAP);
    assert!(board.is_empty());
}

#[test]
fn what_is_over_before_it_was_said_is_not_said() {
    let (mut board, now) = (board(), Instant::now());
    board.set(subject("a"), stuck(Trouble::Refused), now);
    assert!(!board.set(subject("a"), State::Well, now));
    assert_eq!(say(&mut board, now), []);
    board.tidy(now);
    assert!(board.is_empty());
}

#[test]
fn another_trouble_is_said_and_flapping_is_not_followed() {
    let (mut board, begin) = (board(), Instant::now());
    board.set(subject("a"), stuck(Trouble::Rules), begin);
    assert_eq!(say(&mut board, begin).len(), 1);
    for _ in 0..50 {
        board.set(subject("a"), State::Well, begin);
        board.set(subject("a"), stuck(Trouble::Rules), begin);
        assert_eq!(say(&mut board, begin), []);
    }
    board.set(subject("a"), stuck(Trouble::NoZtunnel), begin);
    let other = [("a".to_owned(), stuck(Trouble::NoZtunnel), true, true)];
    assert_eq!(say(&mut board, begin + GAP), other);
}

#[test]
fn an_earlier_agents_condition_is_taken_back() {
    let (mut board, now) = (board(), Instant::now());
    let left = Subject { condition: Some(Captured::No), ..subject("a") };
    board.set(left.clone(), State::Well, now);
    assert_eq!(say(&mut board, now), [("a".to_owned(), State::Well, true, true)]);
    // Read before it was written.
    board.set(left.clone(), State::Well, now + GAP);
    assert_eq!(say(&mut board, now + GAP), []);
    let fine = Subject { condition: Some(Captured::Yes), ..subject("b") };
    assert!(!board.set(fine.clone(), State::Well, now));
    board.set(Subject { uid: "another".to_owned(), ..left }, State::Outside, now);
    let names = say(&mut board, now);
    assert_eq!(names, [("a".to_owned(), State::Outside, false, true)], "no Event");
    board.set(fine, State::Outside, now);
    assert_eq!(say(&mut board, now), [("b".to_owned(), State::Outside, false, true)]);
    assert!(!board.set(subject("c"), State::Outside, now), "it has none");
}

#[test]
fn what_could_not_be_written_is_tried_again() {
    let (mut board, now) = (board(), Instant::now());
    board.set(subject("a"), stuck(Trouble::Probes), now);
    let telling = board.next(now).unwrap();
    board.said(&telling, true, false, now);
    assert_eq!(board.next(now), None);
    let rest = board.next(now + GAP).unwrap();
    assert!(!rest.event && rest.condition);
    // Not permitted: the Event is enough.
    board.conditions = false;
    assert_eq!(board.next(now + GAP), None);
    board.events = false;
    board.set(subject("b"), stuck(Trouble::Probes), now);
    assert_eq!(board.next(now), None);
    assert_eq!(board.stuck()[&Trouble::Probes], 2, "counted all the same");
}

#[test]
fn pods_that_were_never_spoken_of_come_first_and_those_that_are_gone_never() {
    let (mut board, now) = (board(), Instant::now());
    for name in ["a", "b", "c"] {
        board.set(subject(name), stuck(Trouble::NoZtunnel), now);
    }
    let first = board.next(now).unwrap();
    board.said(&first, false, false, now);
    let names: Vec<_> = say(&mut board, now + GAP).into_iter().map(|said| said.0).collect();
    assert_eq!(names, ["b", "c", "a"]);
    board.gone(&Subject { uid: "another".to_owned(), ..subject("a") });
    board.retain(|subject| subject.name != "b");
    board.gone(&subject("c"));
    assert_eq!(board.stuck()[&Trouble::NoZtunnel], 1);
    let over = Subject { over: true, ..subject("a") };
    board.set(over, State::Outside, now);
    board.retain(|_| true);
    assert!(board.is_empty(), "nobody looks at a pod that has ended");
}

#[test]
fn rules_that_may_remain_are_said_until_they_are_out() {
    let (mut board, now) = (board(), Instant::now());
    let left = Subject { condition: Some(Captured::Yes), ..subject("a") };
    board.set(left.clone(), stuck(Trouble::Remains), now);
    let said = say(&mut board, now);
    assert_eq!(said, [("a".to_owned(), stuck(Trouble::Remains), true, true)], "it goes");
    assert_eq!(board.stuck()[&Trouble::Remains], 1);
    board.set(left, State::Outside, now);
    assert_eq!(say(&mut board, now + GAP), [], "there is nothing to say of a pod outside");
    assert_eq!(board.stuck()[&Trouble::Remains], 0);
}

#[test]
fn messages_say_what_to_do_and_reasons_are_words() {
    for trouble in Trouble::ALL {
        let message = trouble.message("the kernel refused");
        assert!(message.contains("the kernel refused") && message.contains("tried again; "));
        assert!(!trouble.message("").contains(": ."));
        let reason = trouble.reason();
        assert!(reason.bytes().all(|b| b.is_ascii_alphanumeric()), "{reason}");
        assert!(reason.len() <= 128 && trouble.code().bytes().all(|b| b != b'_'));
    }
}
