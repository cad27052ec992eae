// Command admission asks the API server's own code what it would decide about
// requests: it compiles a ValidatingAdmissionPolicy as the server does and runs cases
// through it.
//
// Usage: admission POLICY.json CASES.json
//
// A case: {"name", "operation", "resource", "subresource", "user", "node", "allowed",
// "message" (part of the refusal), "old", "new" (pods)}. One line a case on standard
// output, `ok NAME` or `FAIL NAME: why`; the exit status is 1 when the policy does not
// compile or a file cannot be read.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
)

const nodeKey = "authentication.kubernetes.io/node-name"

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

type testCase struct {
	Name        string
	Operation   string
	Resource    string
	Subresource string
	User        string
	Node        string
	Allowed     bool
	Message     string
	Old, New    *corev1.Pod
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "admission:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: admission POLICY.json CASES.json")
	}
	var policy v1.ValidatingAdmissionPolicy
	if err := read(args[0], &policy); err != nil {
		return err
	}
	var cases []testCase
	if err := read(args[1], &cases); err != nil {
		return err
	}
	validator, err := compile(&policy)
	if err != nil {
		return err
	}
	for _, c := range cases {
		if err := check(validator, c); err != nil {
			fmt.Printf("FAIL %s: %v\n", c.Name, err)
		} else {
			fmt.Printf("ok %s\n", c.Name)
		}
	}
	return nil
}

func read(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// compile follows the server's own set-up, of which only the parts are public. It
// refuses what the server would take and then fail every request with.
func compile(policy *v1.ValidatingAdmissionPolicy) (validating.Validator, error) {
	base := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
	compiler, err := cel.NewCompositedCompiler(base)
	if err != nil {
		return nil, err
	}
	variables := make([]cel.NamedExpressionAccessor, 0, len(policy.Spec.Variables))
	for _, v := range policy.Spec.Variables {
		variables = append(variables, &validating.Variable{Name: v.Name, Expression: v.Expression})
	}
	var conditions, rules, messages []cel.ExpressionAccessor
	for i := range policy.Spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&policy.Spec.MatchConditions[i]))
	}
	for _, v := range policy.Spec.Validations {
		rules = append(rules, &validating.ValidationCondition{Expression: v.Expression, Message: v.Message, Reason: v.Reason})
		// A nil entry keeps the two lists in step.
		var message cel.ExpressionAccessor
		if v.MessageExpression != "" {
			message = &validating.MessageExpressionCondition{MessageExpression: v.MessageExpression}
		}
		messages = append(messages, message)
	}
	withAuthorizer := cel.OptionalVariableDeclarations{HasAuthorizer: true}
	compiler.CompileAndStoreVariables(variables, withAuthorizer, environment.StoredExpressions)
	for _, expressions := range [][]cel.ExpressionAccessor{conditions, rules, messages} {
		for _, expression := range expressions {
			if expression == nil {
				continue
			}
			result := compiler.CompileCELExpression(expression, withAuthorizer, environment.StoredExpressions)
			if result.Error != nil {
				return nil, fmt.Errorf("%s\n%s", expression.GetExpression(), result.Error.Detail)
			}
		}
	}
	failure := policy.Spec.FailurePolicy
	matcher := matchconditions.NewMatcher(
		compiler.CompileCondition(conditions, withAuthorizer, environment.StoredExpressions),
		failure, "policy", "validate", policy.Name)
	return validating.NewValidator(
		compiler.CompileCondition(rules, withAuthorizer, environment.StoredExpressions),
		matcher,
		compiler.CompileCondition(nil, withAuthorizer, environment.StoredExpressions),
		compiler.CompileCondition(messages, cel.OptionalVariableDeclarations{}, environment.StoredExpressions),
		failure, nil), nil
}

func check(validator validating.Validator, c testCase) error {
	identity := &user.DefaultInfo{Name: c.User, Extra: map[string][]string{}}
	if c.Node != "" {
		identity.Extra[nodeKey] = []string{c.Node}
	}
	resource := schema.GroupVersionResource{Version: "v1", Resource: c.Resource}
	name, namespace := "", ""
	// An interface that holds a nil pointer is not nil.
	var before, after runtime.Object
	if c.Old != nil {
		before, name, namespace = c.Old, c.Old.Name, c.Old.Namespace
	}
	if c.New != nil {
		after, name, namespace = c.New, c.New.Name, c.New.Namespace
	}
	attributes := admission.NewAttributesRecord(after, before, podKind, namespace, name, resource,
		c.Subresource, admission.Operation(c.Operation), nil, false, identity)
	versioned, err := admission.NewVersionedAttributes(attributes, podKind, admission.NewObjectInterfacesFromScheme(scheme()))
	if err != nil {
		return err
	}
	result := validator.Validate(context.Background(), resource, versioned, nil, nil, celconfig.RuntimeCELCostBudget, nil)
	var refusals []string
	for _, decision := range result.Decisions {
		// The cases are about decisions: an error that happens to refuse is a defect.
		if decision.Evaluation == validating.EvalError {
			return fmt.Errorf("evaluation failed: %s", decision.Message)
		}
		if decision.Action == validating.ActionDeny {
			refusals = append(refusals, decision.Message)
		}
	}
	switch got := strings.Join(refusals, "; "); {
	case c.Allowed && got != "":
		return fmt.Errorf("refused: %s", got)
	case !c.Allowed && got == "":
		return errors.New("allowed")
	case !strings.Contains(got, c.Message):
		return fmt.Errorf("refused with %q, want %q in it", got, c.Message)
	}
	return nil
}

func scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		panic(err)
	}
	return s
}
