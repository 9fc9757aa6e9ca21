"""Recording a forward pass: module hooks, dispatch modes, events, and operators made of them."""
