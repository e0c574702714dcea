//! The types that the port carries, one line each.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use tradewind_api::{Provider, RentedMachine, TrainingJob};

/// Makes a type known to the port: a static [`Kind`](crate::Kind) and the [`Typed`](crate::Typed) implementation.
///
/// `kind!(NAME: Type, "group", "version", "plural", "Kind", namespaced|cluster, shape)`, where the shape says what the
/// server does with objects of the type:
/// * `custom`: `spec` and `status` fields (both `PartialEq`), status subresource, generation counted;
/// * `counted`: the same for a built-in type, whose status calls may also change labels and annotations;
/// * `uncounted`: built in, status subresource, no generation;
/// * `plain`: no status subresource, no generation.
#[macro_export]
macro_rules! kind {
    ($name:ident: $type:ty, $group:literal, $version:literal, $plural:literal, $kind:literal, $scope:ident, $shape:ident) => {
        #[doc = concat!("How the port handles ", $kind, ".")]
        pub static $name: $crate::Kind = $crate::Kind {
            group: $group,
            version: $version,
            plural: $plural,
            kind: $kind,
    namespaced: $crate::kind!(@scope $scope),
    custom: $crate::kind!(@custom $shape),
    generation: $crate::kind!(@generation $shape),
    status: $crate::kind!(@status $shape $type),
            decode: $crate::object::erased::decode::<$type>,
            decode_list: $crate::object::erased::decode_list::<$type>,
            from_value: $crate::object::erased::from_value::<$type>,
            encode: $crate::object::erased::encode::<$type>,
            to_value: $crate::object::erased::to_value::<$type>,
    same_spec: $crate::kind!(@same $shape $type),
            is: $crate::object::erased::is::<$type>,
        };
        impl $crate::Typed for $type {
            const KIND: &'static $crate::Kind = &$name;
        }
    };
    (@scope namespaced) => {
        true
    };
    (@scope cluster) => {
        false
    };
    (@custom custom) => {
        true
    };
    (@custom $other:ident) => {
        false
    };
    (@generation custom) => {
        true
    };
    (@generation counted) => {
        true
    };
    (@generation $other:ident) => {
        false
    };
    (@status plain $type:ty) => {
        None
    };
    (@status $shape:ident $type:ty) => {
        Some($crate::object::StatusParts {
            same: |a, b| $crate::object::erased::of::<$type>(a).status == $crate::object::erased::of::<$type>(b).status,
            swap: |a, b| {
                std::mem::swap(
                    &mut $crate::object::erased::of_mut::<$type>(a).status,
                    &mut $crate::object::erased::of_mut::<$type>(b).status,
                );
            },
            copy: |to, from| {
                $crate::object::erased::of_mut::<$type>(to)
                    .status
                    .clone_from(&$crate::object::erased::of::<$type>(from).status);
            },
            clear: |object| $crate::object::erased::of_mut::<$type>(object).status = Default::default(),
            to_value: |object| serde_json::to_value(&$crate::object::erased::of::<$type>(object).status),
            set_value: |object, value| {
                $crate::object::erased::of_mut::<$type>(object).status = serde_json::from_value(value)?;
                Ok(())
            },
        })
    };
    (@same plain $type:ty) => {
        |a, b| {
            let mut a = $crate::object::erased::of::<$type>(a).clone();
            a.metadata.clone_from(&$crate::object::erased::of::<$type>(b).metadata);
            &a == $crate::object::erased::of::<$type>(b)
        }
    };
    (@same $shape:ident $type:ty) => {
        |a, b| $crate::object::erased::of::<$type>(a).spec == $crate::object::erased::of::<$type>(b).spec
    };
}

kind!(POD: Pod, "", "v1", "pods", "Pod", namespaced, counted);
kind!(NODE: Node, "", "v1", "nodes", "Node", cluster, uncounted);
kind!(NAMESPACE: Namespace, "", "v1", "namespaces", "Namespace", cluster, uncounted);
kind!(SECRET: Secret, "", "v1", "secrets", "Secret", namespaced, plain);
kind!(CONFIG_MAP: ConfigMap, "", "v1", "configmaps", "ConfigMap", namespaced, plain);
kind!(EVENT: Event, "events.k8s.io", "v1", "events", "Event", namespaced, plain);
kind!(LEASE: Lease, "coordination.k8s.io", "v1", "leases", "Lease", namespaced, plain);
kind!(TRAINING_JOB: TrainingJob, "tradewind.dev", "v1alpha1", "trainingjobs", "TrainingJob", namespaced, custom);
kind!(PROVIDER: Provider, "tradewind.dev", "v1alpha1", "providers", "Provider", cluster, custom);
kind!(RENTED_MACHINE: RentedMachine, "tradewind.dev", "v1alpha1", "rentedmachines", "RentedMachine", cluster, custom);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Typed;

    fn agrees<K: Typed + kube::Resource<DynamicType = ()>>() {
        let kind = K::KIND;
        assert_eq!(kind.group, K::group(&()));
        assert_eq!(kind.version, K::version(&()));
        assert_eq!(kind.plural, K::plural(&()));
        assert_eq!(kind.kind, K::kind(&()));
        let namespace = kind.namespaced.then_some("n");
        assert_eq!(kind.path(namespace), K::url_path(&(), namespace));
    }

    #[test]
    fn the_names_are_those_of_the_types() {
        agrees::<Pod>();
        agrees::<Node>();
        agrees::<Namespace>();
        agrees::<Secret>();
        agrees::<ConfigMap>();
        agrees::<Event>();
        agrees::<Lease>();
        agrees::<TrainingJob>();
        agrees::<Provider>();
        agrees::<RentedMachine>();
    }
}
