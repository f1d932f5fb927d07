use super::*;
use crate::blk::F_RING_EVENT_IDX;
use crate::testing::{AVAIL, Driver, END, USED};

fn start(driver: &Driver, features: u64) -> Virtqueue {
    Virtqueue::new(&driver.setup(features, None)).unwrap().0
}

#[test]
fn heads_come_in_order_and_go_back_across_the_wrap_of_the_indices() {
    let mut driver = Driver::new(4, 65533);
    let mut queue = start(&driver, 0);
    let mut used = 65533u16;
    for round in 0..10u16 {
        let heads = [round % 4, (round + 1) % 4, (round + 3) % 4];
        heads.iter().for_each(|head| driver.offer(*head));
        for head in heads {
            assert!(queue.has_avail());
            assert_eq!(queue.pop(), Ok(Some(head)));
        }
        assert!(!queue.has_avail());
        assert_eq!(queue.pop(), Ok(None));
        for head in heads.iter().rev() {
            queue.push_used(*head, u32::from(round) + 7);
            assert_eq!(driver.used_elem(used), (u32::from(*head), u32::from(round) + 7));
            used = used.wrapping_add(1);
            assert_eq!(driver.used_idx(), used);
        }
    }
    assert_eq!(queue.next_avail(), 65533u16.wrapping_add(30));
}

#[test]
fn a_broken_ring_stays_broken() {
    type Break = fn(&mut Driver);
    let cases: [(&str, Break); 3] = [
        ("an index too far ahead", |driver| driver.set_avail_idx(5)),
        ("a head that is no descriptor", |driver| driver.offer(4)),
        ("an index that runs backwards", |driver| driver.set_avail_idx(65535)),
    ];
    for (what, breaks) in cases {
        let mut driver = Driver::new(4, 0);
        let mut queue = start(&driver, 0);
        breaks(&mut driver);
        let error = queue.pop().unwrap_err();
        driver.set_avail_idx(1);
        assert_eq!(queue.pop(), Err(error), "{what}");
        assert!(!queue.has_avail(), "{what}: nobody polls it");
        assert!(!queue.enable_kick(), "{what}");
    }
}

#[test]
fn a_head_offered_twice_breaks_the_ring_unless_it_was_given_back() {
    let mut driver = Driver::new(4, 0);
    let mut queue = start(&driver, 0);
    driver.offer(1);
    assert_eq!(queue.pop(), Ok(Some(1)));
    queue.push_used(1, 0);
    driver.offer(1);
    driver.offer(1);
    assert_eq!(queue.pop(), Ok(Some(1)));
    assert_eq!(queue.pop(), Err(QueueError::HeadBusy { next: 2, head: 1 }));
}

#[test]
fn impossible_rings_are_not_started() {
    let driver = Driver::new(4, 0);
    type Change = fn(&mut QueueSetup);
    let wrong: [Change; 9] = [
        |s| s.size = 0,
        |s| s.size = 3,
        |s| s.size = 32769,
        |s| s.desc_addr += 8,
        |s| s.avail_addr = AVAIL + 1,
        |s| s.used_addr = USED + 2,
        |s| s.used_addr = END - 32,
        |s| s.desc_addr = u64::MAX - 15,
        |s| s.avail_addr = 0,
    ];
    for (case, change) in wrong.into_iter().enumerate() {
        let mut setup = driver.setup(0, None);
        change(&mut setup);
        assert!(Virtqueue::new(&setup).is_err(), "case {case}");
    }
    assert!(Virtqueue::new(&driver.setup(0, None)).is_ok());
}

#[test]
fn the_event_is_passed_exactly_when_it_lies_in_the_step() {
    // event, now, before
    for (event, now, before, passed) in [
        (0, 1, 0, true),
        (0, 0, 0, false),
        (1, 1, 0, false),
        (4, 6, 2, true),
        (5, 6, 2, true),
        (6, 6, 2, false),
        (1, 6, 2, false),
        (2, 6, 2, true),
        (65535, 0, 65535, true),
        (65535, 2, 65533, true),
        (65532, 2, 65533, false),
        (2, 2, 65533, false),
    ] {
        assert_eq!(need_event(event, now, before), passed, "{event} in {before}..{now}");
    }
}

#[test]
fn the_guest_is_told_once_when_its_event_is_passed() {
    let mut driver = Driver::new(4, 0);
    let mut queue = start(&driver, F_RING_EVENT_IDX);
    assert!(queue.needs_call(), "a predecessor may not have told");
    driver.set_used_event(1);
    for head in 0..3 {
        driver.offer(head);
        assert_eq!(queue.pop(), Ok(Some(head)));
    }
    assert!(!queue.needs_call());
    queue.push_used(0, 0);
    assert!(!queue.needs_call());
    queue.push_used(1, 0);
    assert!(queue.needs_call());
    queue.push_used(2, 0);
    assert!(!queue.needs_call());
}

#[test]
fn without_events_the_guests_flag_decides() {
    let mut driver = Driver::new(4, 0);
    let mut queue = start(&driver, 0);
    assert!(queue.needs_call());
    assert!(!queue.needs_call(), "nothing is new");
    for (flags, wanted) in [(AVAIL_F_NO_INTERRUPT, false), (0, true)] {
        driver.set_avail_flags(flags);
        driver.offer(2);
        queue.pop().unwrap();
        queue.push_used(2, 0);
        assert_eq!(queue.needs_call(), wanted);
    }
}

#[test]
fn asking_for_a_kick_reports_what_came_before_it_was_asked() {
    for features in [0, F_RING_EVENT_IDX] {
        let mut driver = Driver::new(4, 9);
        let mut queue = start(&driver, features);
        queue.disable_kick();
        assert_eq!(driver.used_flags(), u16::from(features == 0));
        assert!(!queue.enable_kick());
        assert_eq!(driver.used_flags(), 0);
        driver.offer(0);
        assert!(queue.enable_kick());
        queue.pop().unwrap();
        assert!(!queue.enable_kick());
        assert_eq!(driver.avail_event(), if features == 0 { 0 } else { 10 });
    }
}
