//! Random histories: the volume does what a file system in plain memory does, also across remounts.

mod support;

use fs_server::FormatOptions;
use fs_server::simulated::{Behaviour, SimulatedDevice, SimulatedEnvironment};
use proptest::prelude::*;
use support::{Model, Operation, apply, format, mount, snapshot};

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(0..4_u8, 1),
        3 => prop::collection::vec(0..3_u8, 2),
        1 => prop::collection::vec(0..2_u8, 3),
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(4095),
        Just(4096),
        Just(5000),
        0..20_000_u64,
        (1_u64 << 20) - 5000..(1 << 20) + 5000,
        0..3_000_000_u64
    ]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(1), Just(4096), 1..9000_usize, Just(1 << 20), 1..1_500_000_usize]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => path().prop_map(Operation::Create),
        2 => path().prop_map(Operation::Mkdir),
        6 => (path(), offset(), length(), any::<u8>()).prop_map(|(p, o, l, f)| Operation::Write(p, o, l, f)),
        4 => (path(), 0..9000_usize, any::<u8>()).prop_map(|(p, l, f)| Operation::Append(p, l, f)),
        3 => (path(), offset()).prop_map(|(p, s)| Operation::Truncate(p, s)),
        2 => path().prop_map(Operation::Unlink),
        1 => path().prop_map(Operation::Rmdir),
        3 => (path(), path()).prop_map(|(f, t)| Operation::Rename(f, t)),
        3 => (path(), offset(), 1..100_000_u32).prop_map(|(p, o, l)| Operation::Read(p, o, l)),
        1 => Just(Operation::Sync),
        1 => Just(Operation::Remount),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_volume_does_what_the_model_does(
        operations in prop::collection::vec(operation(), 1..60),
        seed: u64,
        yields: bool,
        one_copy: bool,
        name_hash_bits in prop_oneof![Just(64_u8), Just(1), Just(3)],
    ) {
        let environment = SimulatedEnvironment::new(seed);
        let device = SimulatedDevice::new(16_384, seed, Behaviour { yields, ..Behaviour::default() });
        let options = FormatOptions { node_copies: if one_copy { 1 } else { 2 }, name_hash_bits };
        let mut volume = format(&environment, &device, options);
        let mut model = Model::empty();
        for operation in &operations {
            let expected = model.apply(operation);
            let got = environment.run(apply(&volume, operation));
            prop_assert_eq!(&got, &expected, "{:?}", operation);
            if let Operation::Remount = operation {
                environment.run(volume.sync()).unwrap();
                drop(volume);
                environment.crash();
                volume = mount(&environment, &device).unwrap();
            }
        }
        prop_assert_eq!(&environment.run(snapshot(&volume, volume.root())).unwrap(), &model);
        let report = environment.run(volume.check(&mut |_| ())).unwrap();
        prop_assert!(report.is_clean(), "{:#?}", report);
        drop(volume);
        environment.crash();
        let volume = mount(&environment, &device).unwrap();
        prop_assert_eq!(&environment.run(snapshot(&volume, volume.root())).unwrap(), &model);
    }
}
