use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};

use super::*;
use crate::*;

fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

fn schema(name: &str) -> Value {
    let schema = document()["components"]["schemas"][name].clone();
    assert!(schema.is_object(), "docs/openapi.json has no schema {name}");
    schema
}

fn names(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

/// One value of each type, with every field and nothing by default: a new field does not compile
/// until it is here, and does not pass until it is in the document.
fn samples() -> Vec<(&'static str, Value)> {
    fn sample(name: &'static str, value: &impl Serialize) -> (&'static str, Value) {
        (name, serde_json::to_value(value).unwrap())
    }
    let encryption = Encryption {
        luks_version: 2,
        uuid: "u".to_owned(),
        cipher: "c".to_owned(),
        key_bits: 512,
        sector_bytes: 4096,
        implementation: "i".to_owned(),
    };
    let storage = StorageStatus {
        state: StorageState::Silent,
        since_seconds: Some(1),
        losses: 2,
        lost_seconds_total: 3,
        waiting: 4,
    };
    let requests = Requests { read: 1, write: 2, flush: 3, discard: 4 };
    let errors = Errors { volume: 1, guest: 2 };
    let queue = QueueStatus {
        index: 0,
        running: true,
        broken: false,
        requests: requests.clone(),
        read_bytes: 1,
        written_bytes: 2,
        errors: errors.clone(),
        inflight: 3,
        replayed: 4,
        held: 5,
        throttled: 8,
        throttled_us: 9,
        parked: 6,
        parked_now: 7,
    };
    let rotation = Rotation {
        state: RotationState::Running,
        done_bytes: 1,
        total_bytes: 2,
        rate_bytes: 3,
        limit_bytes: Some(4),
        eta_seconds: Some(5),
        hotzone_bytes: 6,
        resilience: "checksum".to_owned(),
        old_volume_key: "o".to_owned(),
        new_volume_key: "n".to_owned(),
        old_secret: "a".to_owned(),
        new_secret: "b".to_owned(),
        started_at: Some(7),
        ended_at: Some(8),
        parked_us_max: 9,
        header_backup: Some("/b".to_owned()),
        trouble: Some("t".to_owned()),
        failures: 10,
    };
    let key_age = KeyAge {
        volume_key_since: Some(1),
        secret_since: Some(2),
        due_at: Some(3),
        last_rotation_at: Some(4),
        next_run_at: Some(5),
    };
    let volume = VolumeStatus {
        name: "vda".to_owned(),
        uri: "/dev/vdb".to_owned(),
        socket: "/s".to_owned(),
        state: SessionState::Connected,
        encryption: Some(encryption.clone()),
        capacity_bytes: 1,
        block_bytes: 512,
        read_only: false,
        discard: true,
        writeback: true,
        serial: "s".to_owned(),
        limits: [("total_iops_sec".to_owned(), 500)].into(),
        storage: storage.clone(),
        queues: vec![queue.clone()],
        rotation: Some(rotation.clone()),
        key_age: Some(key_age.clone()),
    };
    let status = Status {
        version: "1".to_owned(),
        pid: 1,
        uptime_seconds: 2,
        secret_protection: "mlock".to_owned(),
        volumes: vec![volume.clone()],
    };
    let resize = Resize { volume_bytes: 1, capacity_bytes: 2, waits_for_rotation: true };
    vec![
        sample("Encryption", &encryption),
        sample("StorageStatus", &storage),
        sample("Requests", &requests),
        sample("Errors", &errors),
        sample("QueueStatus", &queue),
        sample("Rotation", &rotation),
        sample("KeyAge", &key_age),
        sample("VolumeStatus", &volume),
        sample("Status", &status),
        sample("Resize", &resize),
        sample("Health", &Health { status: "ok".to_owned() }),
        sample("Refusal", &Refusal { error: "e".to_owned() }),
    ]
}

fn orders() -> Vec<Value> {
    let start = RotationOrder::Start {
        new_key: Some("file:/k".to_owned()),
        rate_bytes: Some(1),
        hotzone_bytes: Some(2),
        header_backup: Some("/b".to_owned()),
        keep_luks2: true,
    };
    let throttle = RotationOrder::Throttle { rate_bytes: Some(1) };
    [start, RotationOrder::Pause, RotationOrder::Resume, throttle]
        .iter()
        .map(|order| serde_json::to_value(order).unwrap())
        .collect()
}

/// Insists on the type that a property's schema names.
fn has_type(name: &str, property: &Value, value: &Value) {
    let found = match value {
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Null => "null",
    };
    if let Some(fixed) = property.get("const") {
        return assert_eq!(fixed, value, "{name}");
    }
    if let Some(target) = property.get("$ref").or_else(|| property["oneOf"][0].get("$ref")) {
        let target = target.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
        return assert_eq!(schema(target)["type"], found, "{name}");
    }
    let allowed = match &property["type"] {
        Value::Array(several) => several.clone(),
        one => vec![one.clone()],
    };
    assert!(allowed.contains(&json!(found)), "{name} is {found}, documented as {allowed:?}");
}

#[test]
fn every_type_and_field_is_described_with_its_type() {
    let samples = samples();
    for (name, value) in &samples {
        let schema = schema(name);
        assert_eq!(names(&schema["properties"]), names(value), "{name}");
        let required: BTreeSet<String> =
            serde_json::from_value(schema["required"].clone()).unwrap();
        assert_eq!(required, names(value), "an answer has all fields of {name}");
        for (field, value) in value.as_object().unwrap() {
            let property = &schema["properties"][field];
            assert!(property["description"].is_string(), "{name}.{field} is not described");
            has_type(&format!("{name}.{field}"), property, value);
        }
    }
    let mut all: BTreeSet<String> = samples.iter().map(|(name, _)| (*name).to_owned()).collect();
    let others = ["SessionState", "StorageState", "RotationState", "RotationOrder"];
    all.extend(others.map(str::to_owned));
    assert_eq!(names(&document()["components"]["schemas"]), all);
}

#[test]
fn what_may_be_null_is_said_to_be() {
    let empty = [
        ("VolumeStatus", serde_json::to_value(VolumeStatus::default()).unwrap()),
        ("StorageStatus", serde_json::to_value(StorageStatus::default()).unwrap()),
        ("Rotation", serde_json::to_value(Rotation::default()).unwrap()),
        ("KeyAge", serde_json::to_value(KeyAge::default()).unwrap()),
    ];
    for (name, value) in empty {
        for (field, value) in value.as_object().unwrap().iter().filter(|(_, value)| value.is_null())
        {
            let property = &schema(name)["properties"][field];
            match property.get("oneOf") {
                Some(either) => assert_eq!(either[1]["type"], "null", "{name}.{field}"),
                None => has_type(&format!("{name}.{field}"), property, value),
            }
        }
    }
}

#[test]
fn every_state_is_described() {
    let sessions: Vec<_> = SessionState::ALL.iter().map(|state| state.as_str()).collect();
    let storage: Vec<_> = StorageState::ALL.iter().map(|state| state.as_str()).collect();
    let rotations: Vec<_> = RotationState::ALL.iter().map(|state| state.as_str()).collect();
    for (name, states) in
        [("SessionState", sessions), ("StorageState", storage), ("RotationState", rotations)]
    {
        assert_eq!(schema(name)["enum"], json!(states), "{name}");
    }
}

#[test]
fn every_order_is_described_and_takes_what_is_described() {
    let described = schema("RotationOrder")["oneOf"].as_array().unwrap().clone();
    let orders = orders();
    assert_eq!(described.len(), orders.len());
    for (schema, order) in described.iter().zip(&orders) {
        assert_eq!(names(&schema["properties"]), names(order));
        assert_eq!(schema["additionalProperties"], false, "as serde refuses them");
        for (field, value) in order.as_object().unwrap() {
            has_type(field, &schema["properties"][field], value);
        }
        let least = json!({"action": schema["properties"]["action"]["const"]});
        assert!(serde_json::from_value::<RotationOrder>(least).is_ok(), "{schema}");
    }
}
