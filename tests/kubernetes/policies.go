// Serves the admission policies of a newer Kubernetes as a webhook of an older one.
//
// Usage: policies KUBECONFIG MANIFESTS CERTIFICATE KEY. MANIFESTS is a file with a JSON
// list of ValidatingAdmissionPolicies and their bindings. Prints "port" and its own when it is ready.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"

	admissionv1 "k8s.io/api/admission/v1"
	registrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	registration "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// What the older one does not know comes from here, all else from itself.
type cluster struct {
	kubernetes.Interface
	policies kubernetes.Interface
}

func (c cluster) AdmissionregistrationV1() registration.AdmissionregistrationV1Interface {
	return c.policies.AdmissionregistrationV1()
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func manifests(path string) (found []runtime.Object) {
	var raw []json.RawMessage
	text := must(os.ReadFile(path))
	must(0, json.Unmarshal(text, &raw))
	for _, each := range raw {
		object, kind, err := scheme.Codecs.UniversalDeserializer().Decode(each, nil, nil)
		must(kind, err)
		scheme.Scheme.Default(object)
		if policy, ok := object.(*registrationv1.ValidatingAdmissionPolicy); ok {
			policy.Generation = 1
		}
		found = append(found, object)
	}
	return found
}

func object(raw runtime.RawExtension) runtime.Object {
	if len(raw.Raw) == 0 {
		return nil
	}
	found := &unstructured.Unstructured{}
	if err := found.UnmarshalJSON(raw.Raw); err != nil {
		panic(err)
	}
	return found
}

func review(plugin *validating.Plugin, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	extra := map[string][]string{}
	for name, values := range request.UserInfo.Extra {
		extra[name] = values
	}
	attributes := admission.NewAttributesRecord(
		object(request.Object), object(request.OldObject), schema.GroupVersionKind(request.Kind),
		request.Namespace, request.Name, schema.GroupVersionResource(request.Resource),
		request.SubResource, admission.Operation(request.Operation), object(request.Options),
		request.DryRun != nil && *request.DryRun,
		&user.DefaultInfo{Name: request.UserInfo.Username, UID: request.UserInfo.UID, Groups: request.UserInfo.Groups, Extra: extra},
	)
	answer := &admissionv1.AdmissionResponse{UID: request.UID, Allowed: true}
	if err := plugin.Validate(context.Background(), attributes, admission.NewObjectInterfacesFromScheme(scheme.Scheme)); err != nil {
		answer.Allowed = false
		answer.Result = &metav1.Status{Code: 403, Reason: metav1.StatusReasonForbidden, Message: err.Error()}
		if status, ok := err.(errors.APIStatus); ok {
			told := status.Status()
			answer.Result = &told
		}
	}
	return answer
}

func main() {
	// Neither the fake client nor the old server ends a watch's first part with a bookmark.
	must(0, os.Setenv("KUBE_FEATURE_WatchListClient", "false"))
	config := must(clientcmd.BuildConfigFromFlags("", os.Args[1]))
	real := must(kubernetes.NewForConfig(config))
	client := cluster{real, fake.NewClientset(manifests(os.Args[2])...)}
	factory := informers.NewSharedInformerFactory(client, 0)
	stop := make(chan struct{})
	plugin := must(validating.NewPlugin(nil))
	plugin.SetExternalKubeClientSet(client)
	plugin.SetExternalKubeInformerFactory(factory)
	plugin.SetDynamicClient(must(dynamic.NewForConfig(config)))
	plugin.SetRESTMapper(restmapper.NewDiscoveryRESTMapper(must(restmapper.GetAPIGroupResources(real.Discovery()))))
	plugin.SetAuthorizer(authorizerfactory.NewAlwaysDenyAuthorizer())
	plugin.SetDrainedNotification(stop)
	must(0, plugin.ValidateInitialization())
	factory.Start(stop)
	factory.WaitForCacheSync(stop)
	if !plugin.WaitForReady() {
		must(0, fmt.Errorf("the policies are not ready"))
	}
	http.HandleFunc("/", func(writer http.ResponseWriter, asked *http.Request) {
		var told admissionv1.AdmissionReview
		if err := json.NewDecoder(asked.Body).Decode(&told); err != nil || told.Request == nil {
			http.Error(writer, "no review", http.StatusBadRequest)
			return
		}
		told.Response, told.Request = review(plugin, told.Request), nil
		json.NewEncoder(writer).Encode(told)
	})
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	fmt.Println("port", listener.Addr().(*net.TCPAddr).Port)
	must(0, http.ServeTLS(listener, nil, os.Args[3], os.Args[4]))
}
